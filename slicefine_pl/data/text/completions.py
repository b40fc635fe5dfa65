"""From prompts and completions, or whole documents, to token sequences of which a part is to be learned.

Knows tokenizers and their chat templates; knows no model.

Shapes:  N examples · B batch · T tokens
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from slicefine_pl.data.tables import Table
from slicefine_pl.data.text.tokens import Tokens, padded

IGNORED = -100  # the label of a token that is not to be predicted


class Examples(Dataset[dict[str, Any]]):
    """Token sequences by index, each with the place from which on it is to be learned.

    Args:
        sequences: N lists of tokens.
        starts: First token to learn of each, at least 1: nothing comes before token 0.
    """

    def __init__(self, sequences: Sequence[list[int]], starts: Sequence[int]) -> None:
        self._sequences = sequences
        self._starts = starts
        self.lengths = [len(sequence) for sequence in sequences]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """Tokens of one example as ``input_ids``, and its ``labels``."""
        tokens, start = self._sequences[index], self._starts[index]
        return {"input_ids": tokens, "labels": [IGNORED] * start + tokens[start:]}


class Completions:
    """Turn texts into examples with the tokenizer of a pretrained model.

    **Ends.** An example begins with the token that the tokenizer begins texts with, if it does, and ends with the one
    that ends texts. With ``chat``, the tokenizer's template decides instead: the prompt is a user's turn, the
    completion the assistant's.
    **Long texts.** A document is shared out over several examples of like length. Of a prompt the beginning is cut, so
    that its completion fits; of a completion that fills the context alone, the end. One warning counts them.

    Args:
        tokens: The tokenizer, with the longest sequence it allows.
        chat: Whether to apply its chat template.
    """

    def __init__(self, tokens: Tokens, *, chat: bool) -> None:
        self._tokens = tokens
        self._tokenizer = tokens.tokenizer
        self._chat = chat
        if chat and not self._tokenizer.chat_template:
            raise ValueError("chat=True needs a chat template, which this tokenizer lacks; set chat=False.")
        begin, end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        begins = not chat and begin is not None and self._tokenizer("a")["input_ids"][:1] == [begin]
        self._begin = [int(begin)] if begins else []
        self._end = [] if chat or end is None else [int(end)]

    def encode(self, table: Table) -> Examples:
        """Tokenise the rows of a table.

        Args:
            table: One column with prompts, and completions as labels; or with documents, and no label.

        Raises:
            ValueError: A row has nothing to learn, or the chat template does not fit.
        """
        return self._documents(table) if table.labels[0] is None else self._pairs(table)

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Tokenise prompts alone, exactly as in ``encode``, but never cut."""
        opened = [self._opening(prompt) for prompt in prompts] if self._chat else prompts
        return [[*self._begin, *ids] for ids in self._tokens.encode_bare(opened)]

    def _pairs(self, table: Table) -> Examples:
        prompts, completions = table.columns[0], table.labels
        if self._chat:
            completions = [self._answer(*pair) for pair in zip(prompts, completions, strict=True)]
        sequences, starts, lengths = [], [], []
        limit = self._tokens.max_length
        tails = self._tokens.encode_bare(completions)
        for row, prompt, tail in zip(table.rows, self.encode_prompts(prompts), tails, strict=True):
            if not tail:
                raise ValueError(f"{table.source!r}, {table.unit} {row}, has a completion without tokens; correct it.")
            lengths.append(len(prompt) + len(tail) + len(self._end))
            begin, body = prompt[: len(self._begin)], prompt[len(self._begin) :]
            learned = [*tail, *self._end][: limit - len(begin) - bool(body)]
            cut = max(0, len(prompt) + len(learned) - limit)
            sequences.append([*begin, *body[cut:], *learned])
            starts.append(max(1, len(prompt) - cut))
        self._warn(lengths)
        return Examples(sequences, starts)

    def _documents(self, table: Table) -> Examples:
        if self._chat:
            raise ValueError(
                f"chat=True needs prompts and completions, and {table.source!r} has neither; leave it out."
            )
        sequences = []
        for row, body in zip(table.rows, self._tokens.encode_bare(table.columns[0]), strict=True):
            tokens = [*self._begin, *body, *self._end]
            if len(tokens) < 2:
                raise ValueError(
                    f"{table.source!r}, {table.unit} {row}, has a text of less than two tokens; correct it."
                )
            parts = -(-len(tokens) // self._tokens.max_length)
            bounds = [len(tokens) * part // parts for part in range(parts + 1)]  # like lengths: none is too short
            sequences += [tokens[first:last] for first, last in pairwise(bounds)]
        return Examples(sequences, [1] * len(sequences))

    def _opening(self, prompt: str) -> str:
        turns = [{"role": "user", "content": prompt}]
        return str(self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))

    def _answer(self, prompt: str, completion: str) -> str:
        """What the template writes after the opening: the completion and the end of the turn."""
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        whole, opening = str(self._tokenizer.apply_chat_template(turns, tokenize=False)), self._opening(prompt)
        if not whole.startswith(opening):
            raise ValueError(
                f"the chat template does not continue its own prompt ({opening[-40:]!r} became {whole[:80]!r}); "
                "set chat=False."
            )
        return whole[len(opening) :]

    def _warn(self, lengths: Sequence[int]) -> None:
        limit = self._tokens.max_length
        if long := [length for length in lengths if length > limit]:
            rank_zero_warn(
                f"{len(long)} of {len(lengths)} examples are longer than max_length={limit} tokens (the longest has "
                f"{max(long)}): the beginning of their prompts was cut; raise max_length, or shorten them."
            )


class PadExamples:
    """Pad the examples of a batch to its longest, on the right."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, items: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask`` and ``labels``, shape ``(B, T)``, int64."""
        return {
            "input_ids": padded([item["input_ids"] for item in items], self.pad),
            "attention_mask": padded([[1] * len(item["input_ids"]) for item in items], 0),
            "labels": padded([item["labels"] for item in items], IGNORED),
        }
