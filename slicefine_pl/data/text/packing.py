"""Pack several short examples into one row.

A packed batch has ``position_ids`` that restart at each example instead of an attention mask. Models of transformers
then restrict attention to each example. Padding at the end of a row is treated as one more example without labels.

Shapes:  B rows · T tokens
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from slicefine_pl.data.text.completions import IGNORED, CausalLMDataset
from slicefine_pl.data.text.tokenization import pad_sequences


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Assign examples to rows, longest first, each to the row where it leaves the least space (best fit decreasing).

    Args:
        lengths: Length of each example, in tokens, at most ``capacity``.
        capacity: Length of a row, in tokens.

    Returns:
        Indices of the examples in each row.
    """
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = defaultdict(list)  # free tokens -> rows with as many
    rooms: list[int] = []  # keys of by_room that are in use, sorted
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


class PackedDataset(Dataset[list[dict[str, Any]]]):
    """Packed rows by index; each is a list of examples.

    Args:
        examples: Dataset to pack.
        capacity: Length of a row, in tokens.
    """

    def __init__(self, examples: CausalLMDataset, capacity: int) -> None:
        self._examples = examples
        self._rows = pack(examples.lengths, capacity)
        self.lengths = [sum(examples.lengths[index] for index in row) for row in self._rows]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        """Return the examples of one row."""
        return [self._examples[example] for example in self._rows[index]]


class PackedCollator:
    """Concatenate the examples of each row, and pad the rows to the longest one, on the right.

    Args:
        pad: Token that fills up ``input_ids``.
    """

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: Sequence[Sequence[dict[str, list[int]]]]) -> dict[str, Tensor]:
        """Return ``input_ids``, ``position_ids`` and ``labels``, shape ``(B, T)``."""
        lengths = [[len(example["input_ids"]) for example in row] for row in rows]
        longest = max(map(sum, lengths))
        sizes = [[*row, longest - sum(row)] for row in lengths]  # padding restarts at 0 too
        return {
            "input_ids": pad_sequences([_joined(row, "input_ids") for row in rows], self.pad),
            "position_ids": pad_sequences([[place for size in row for place in range(size)] for row in sizes], 0),
            "labels": pad_sequences([_joined(row, "labels") for row in rows], IGNORED),
        }


def _joined(row: Sequence[dict[str, list[int]]], name: str) -> list[int]:
    return [token for example in row for token in example[name]]
