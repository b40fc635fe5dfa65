"""What does a causal language model write after a prompt, and how are such samples kept?

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

IGNORED = -100  # the label of a token that is not to be predicted
OPENING = 8  # tokens of a plain text that a sample goes on from


@dataclass(frozen=True)
class Sample:
    """What a model wrote, beside what the data have; ``step`` counts the optimizer steps before it."""

    step: int
    prompt: str
    generated: str
    expected: str


def complete(model: PreTrainedModel, prompts: Sequence[Tensor], pad: int, max_new_tokens: int) -> list[list[int]]:
    """Write on after each prompt, always the most probable token.

    Args:
        model: In eval mode; all processes must call this together.
        prompts: Tokens of each, shape ``(T,)``, of any lengths.
        pad: Token that fills up shorter prompts; the attention mask hides it.
        max_new_tokens: Most tokens to write.

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
        synced_gpus=is_available() and is_initialized(),  # a sharded model hangs where one process stops alone
    )
    return [row[longest:].tolist() for row in generated]


def split_examples(batch: Mapping[str, Tensor], count: int, longest: int) -> list[tuple[Tensor, Tensor]]:
    """Take the first examples of a padded batch apart into prompt and completion.

    Args:
        batch: ``input_ids``, ``attention_mask`` and ``labels``, shape ``(B, T)``.
        count: Examples to take.
        longest: Most tokens of a prompt; a longer one loses its beginning.

    Returns:
        Tokens of prompt and completion of each. All of a plain text is labelled but its first token; there the prompt
        is its opening.
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
    """Make text of the tokens of a prompt, of what was generated, and of what was expected."""
    prompt, generated, expected = (str(tokenizer.decode(each, skip_special_tokens=True)) for each in tokens)
    return Sample(step, prompt, generated, expected)


def keep_samples(samples: Sequence[Sample], folder: Path, loggers: Sequence[Any]) -> None:
    """Append samples to ``samples.jsonl`` of a folder, and hand them to the loggers that take text.

    The logger of Weights & Biases has ``log_text``, TensorBoard's has ``experiment.add_text``; others are left alone.
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
