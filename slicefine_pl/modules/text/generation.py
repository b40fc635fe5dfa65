"""Completions of a causal language model, and the samples that are saved during training.

Shapes:  B batch · T tokens
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import is_available, is_initialized
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from slicefine_pl.files.atomic import warn_on_error, write_atomic

IGNORED = -100  # label of a token that is not predicted
OPENING = 8  # first tokens of a plain text, which a sample completes


@dataclass(frozen=True)
class Sample:
    """A completion of a model.

    Attributes:
        step: Number of optimizer steps before it.
        prompt: The prompt.
        generated: What the model wrote.
        expected: The completion in the data.
    """

    step: int
    prompt: str
    generated: str
    expected: str


def complete(model: PreTrainedModel, prompts: Sequence[Tensor], pad: int, max_new_tokens: int) -> list[list[int]]:
    """Complete prompts with greedy decoding.

    Args:
        model: Model in eval mode. All processes must call this function together.
        prompts: Tokens of each prompt, shape ``(T,)``, of any length.
        pad: Token that fills up shorter prompts. The attention mask hides it.
        max_new_tokens: Largest number of new tokens.

    Returns:
        The new tokens of each prompt.
    """
    longest = max(map(len, prompts))
    ids = torch.stack([torch.cat([each.new_full((longest - len(each),), pad), each]) for each in prompts])
    mask = torch.stack([(torch.arange(longest) >= longest - len(each)).long() for each in prompts])
    generated = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask.to(ids.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=pad,
        synced_gpus=is_available() and is_initialized(),  # a sharded model hangs if one process stops alone
    )
    return [row[longest:].tolist() for row in generated]


def split_examples(batch: Mapping[str, Tensor], count: int, longest: int) -> list[tuple[Tensor, Tensor]]:
    """Split the first examples of a padded batch into prompt and completion.

    Args:
        batch: ``input_ids``, ``attention_mask`` and ``labels``, shape ``(B, T)``.
        count: Number of examples.
        longest: Longest prompt, in tokens. A longer one loses its beginning.

    Returns:
        Tokens of prompt and completion of each example. The prompt of a plain text, whose tokens all have labels, is
        its opening.
    """
    pairs = []
    rows = zip(batch["input_ids"][:count], batch["attention_mask"][:count], batch["labels"][:count], strict=True)
    for ids, mask, labels in rows:
        first = int((labels != IGNORED).nonzero()[0])
        tokens = ids[: int(mask.sum())]
        start = min(OPENING, len(tokens) - 1) if first <= 1 else first
        pairs.append((tokens[:start][-longest:], tokens[start:]))
    return pairs


def decode_sample(tokenizer: PreTrainedTokenizerBase, step: int, tokens: Sequence[Any]) -> Sample:
    """Decode the tokens of a prompt, of the generated and of the expected completion."""
    prompt, generated, expected = (str(tokenizer.decode(each, skip_special_tokens=True)) for each in tokens)
    return Sample(step, prompt, generated, expected)


def save_samples(samples: Sequence[Sample], folder: Path, loggers: Sequence[Any]) -> None:
    """Append samples to ``samples.jsonl`` in a folder, and pass them to loggers that accept text.

    The logger of Weights & Biases has ``log_text``, that of TensorBoard has ``experiment.add_text``.
    """
    path = folder / "samples.jsonl"
    lines = [json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples]
    with warn_on_error(path):
        write_atomic(path, "".join([path.read_text("utf-8") if path.exists() else "", *lines]))
    columns = ["prompt", "generated", "expected"]
    rows = [[sample.prompt, sample.generated, sample.expected] for sample in samples]
    for logger in loggers:
        if hasattr(logger, "log_text"):
            logger.log_text(key="samples", columns=columns, data=rows, step=samples[0].step)
        elif add_text := getattr(getattr(logger, "experiment", None), "add_text", None):
            add_text("samples", "\n".join(" | ".join(row) for row in rows), samples[0].step)
