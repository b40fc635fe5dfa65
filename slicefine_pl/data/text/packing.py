"""Several short examples in one row: which ones, and how the row says where each begins.

A row carries no attention mask but positions that start anew at each example; transformers then lets tokens attend
within their example only.  Padding at the end of a row is one more example, of which nothing is learned.

Shapes:  B rows · T tokens
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from slicefine_pl.data.text.completions import IGNORED, Examples
from slicefine_pl.data.text.tokens import padded


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put examples into rows, from the longest down, each where it leaves the least room.

    Args:
        lengths: Of each example, in tokens, none above ``capacity``.
        capacity: Tokens of a row.

    Returns:
        The examples of each row, by index.
    """
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = defaultdict(list)  # room left to the numbers of the rows that have it
    rooms: list[int] = []  # its keys that are in use, sorted
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect_left(rooms, lengths[index])
        if place == len(rooms):
            room, number = capacity, len(rows)
            rows.append([])
        else:
            room = rooms[place]
            number = by_room[room].pop()
            if not by_room[room]:
                del rooms[place]
        rows[number].append(index)
        if left := room - lengths[index]:
            if not by_room[left]:
                insort(rooms, left)
            by_room[left].append(number)
    return rows


class PackedExamples(Dataset[list[dict[str, Any]]]):
    """Rows by index; each is a list of examples.

    Args:
        examples: To be packed.
        capacity: Tokens of a row.
    """

    def __init__(self, examples: Examples, capacity: int) -> None:
        self._examples = examples
        self._rows = pack(examples.lengths, capacity)
        self.lengths = [sum(examples.lengths[index] for index in row) for row in self._rows]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        """The examples of one row."""
        return [self._examples[example] for example in self._rows[index]]


class PadRows:
    """Join the examples of each row, and pad the rows to the longest, on the right."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: Sequence[Sequence[dict[str, list[int]]]]) -> dict[str, Tensor]:
        """Return ``input_ids``, ``position_ids`` and ``labels``, shape ``(B, T)``."""
        lengths = [[len(example["input_ids"]) for example in row] for row in rows]
        longest = max(map(sum, lengths))
        positions = [[*sizes, longest - sum(sizes)] for sizes in lengths]  # the padding counts from 0 too
        return {
            "input_ids": padded([_joined(row, "input_ids") for row in rows], self.pad),
            "position_ids": padded([[place for size in sizes for place in range(size)] for sizes in positions], 0),
            "labels": padded([_joined(row, "labels") for row in rows], IGNORED),
        }


def _joined(row: Sequence[dict[str, list[int]]], name: str) -> list[int]:
    return [token for example in row for token in example[name]]
