"""Tokenize prompts with completions, or whole documents, for a causal language model.

An example is a token sequence and the position from which on its tokens are labels.

Shapes:  N examples · B batch · T tokens
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from slicefine_pl.data.tables.table import Table
from slicefine_pl.data.text.tokenization import TextTokenizer, pad_sequences

IGNORED = -100  # label of a token that is not predicted


class CausalLMDataset(Dataset[dict[str, Any]]):
    """Token sequences by index, with labels.

    Args:
        sequences: N lists of tokens.
        starts: Position of the first token with a label in each sequence. At least 1, since nothing precedes token 0.
    """

    def __init__(self, sequences: Sequence[list[int]], starts: Sequence[int]) -> None:
        self._sequences = sequences
        self._starts = starts
        self.lengths = [len(sequence) for sequence in sequences]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """Return ``input_ids`` and ``labels`` of one example."""
        tokens, start = self._sequences[index], self._starts[index]
        return {"input_ids": tokens, "labels": [IGNORED] * start + tokens[start:]}


class CompletionEncoder:
    """Turn texts into examples.

    **Special tokens.** An example starts with the BOS token, if the tokenizer adds one to texts, and ends with the EOS
    token. With ``chat``, the chat template adds them: the prompt is a turn of the user, the completion one of the
    assistant.
    **Long texts.** A document is divided into several examples of similar length. A prompt loses its beginning, so that
    its completion fits. A completion that is too long by itself loses its end. One warning counts these examples.

    Args:
        tokens: The tokenizer, with the longest sequence it allows.
        chat: Whether to apply the tokenizer's chat template.
    """

    def __init__(self, tokens: TextTokenizer, *, chat: bool) -> None:
        self._tokens = tokens
        self._tokenizer = tokens.tokenizer
        self._chat = chat
        if chat and not self._tokenizer.chat_template:
            raise ValueError("chat=True needs a chat template, which this tokenizer lacks; set chat=False.")
        begin, end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        begins = not chat and begin is not None and self._tokenizer("a")["input_ids"][:1] == [begin]
        self._begin = [int(begin)] if begins else []
        self._end = [] if chat or end is None else [int(end)]

    def encode(self, table: Table) -> CausalLMDataset:
        """Tokenize the rows of a table.

        Args:
            table: Table with one column. It contains prompts, with completions as labels; or documents, without labels.

        Raises:
            ValueError: A row has no tokens to learn, or the chat template does not fit.
        """
        return self._documents(table) if table.labels[0] is None else self._pairs(table)

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Tokenize prompts without completions, as in ``encode``, but never cut them."""
        opened = [self._opening(prompt) for prompt in prompts] if self._chat else prompts
        return [[*self._begin, *ids] for ids in self._tokens.encode_bare(opened)]

    def _pairs(self, table: Table) -> CausalLMDataset:
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
        self._warn_if_cut(lengths)
        return CausalLMDataset(sequences, starts)

    def _documents(self, table: Table) -> CausalLMDataset:
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
            bounds = [len(tokens) * part // parts for part in range(parts + 1)]  # similar lengths: none is too short
            sequences += [tokens[first:last] for first, last in pairwise(bounds)]
        return CausalLMDataset(sequences, [1] * len(sequences))

    def _opening(self, prompt: str) -> str:
        turns = [{"role": "user", "content": prompt}]
        return str(self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))

    def _answer(self, prompt: str, completion: str) -> str:
        """Return what the template adds to the prompt: the completion and the end of the turn."""
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        whole, opening = str(self._tokenizer.apply_chat_template(turns, tokenize=False)), self._opening(prompt)
        if not whole.startswith(opening):
            raise ValueError(
                f"the chat template does not continue its own prompt ({opening[-40:]!r} became {whole[:80]!r}); "
                "set chat=False."
            )
        return whole[len(opening) :]

    def _warn_if_cut(self, lengths: Sequence[int]) -> None:
        limit = self._tokens.max_length
        if long := [length for length in lengths if length > limit]:
            rank_zero_warn(
                f"{len(long)} of {len(lengths)} examples are longer than max_length={limit} tokens (the longest has "
                f"{max(long)}): the beginning of their prompts was cut; raise max_length, or shorten them."
            )


class CausalLMCollator:
    """Pad the examples of a batch to the longest one, on the right.

    Args:
        pad: Token that fills up ``input_ids``.
    """

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, items: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask`` and ``labels``, shape ``(B, T)``, int64."""
        return {
            "input_ids": pad_sequences([item["input_ids"] for item in items], self.pad),
            "attention_mask": pad_sequences([[1] * len(item["input_ids"]) for item in items], 0),
            "labels": pad_sequences([item["labels"] for item in items], IGNORED),
        }
