"""A table of texts with labels, and its split by a hash of the texts."""

import hashlib
import unicodedata
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any


@dataclass(frozen=True)
class Table:
    """Texts with their labels.

    Attributes:
        source: File or dataset that the rows come from, for messages.
        columns: One list of N texts, or two for pairs of texts.
        labels: N labels, as texts. All ``None`` if there are no labels.
        rows: Number of each row in the source, from 1, for messages.
        unit: What ``rows`` counts: ``"row"``, or ``"line"`` as an editor shows it.
    """

    source: str
    columns: list[list[str]]
    labels: list[Any]
    rows: Sequence[int]
    unit: str = "row"

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.labels)

    def place(self, row: int) -> str:
        """Return source and number of a row (from 0), for messages."""
        return f"{self.source!r}, {self.unit} {self.rows[row]},"

    def select(self, rows: Sequence[int]) -> "Table":
        """Return a table of some of the rows."""
        columns = [[column[row] for row in rows] for column in self.columns]
        return Table(
            self.source, columns, [self.labels[row] for row in rows], [self.rows[row] for row in rows], self.unit
        )


def normalize_text(text: str) -> str:
    """Return the same text for texts that differ only in case, white space or Unicode form."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_by_text(table: Table, percentages: Mapping[str, int]) -> dict[str, Table]:
    """Split the rows by a hash of their text.

    Equal texts are in the same split, whatever the order of the rows and the other texts are.

    Args:
        table: The rows.
        percentages: Percentage of the texts in each split. They add up to 100.
    """
    bounds = list(accumulate(percentages.values()))
    rows: list[list[int]] = [[] for _ in percentages]
    for row, texts in enumerate(zip(*table.columns, strict=True)):
        digest = hashlib.sha256("\n".join(map(normalize_text, texts)).encode()).digest()
        rows[bisect_right(bounds, int.from_bytes(digest[:8], "big") % 100)].append(row)
    return {name: table.select(selected) for name, selected in zip(percentages, rows, strict=True)}


def check_splits(source: str, tables: Mapping[str, Table]) -> None:
    """Check that no split is empty.

    Args:
        source: File or dataset, for the message.
        tables: The splits, by name.

    Raises:
        ValueError: One is; equal texts are in the same split, so it helps only to add different ones.
    """
    for name, table in tables.items():
        if not len(table):
            texts = [
                normalize_text("\n".join(texts))
                for each in tables.values()
                for texts in zip(*each.columns, strict=True)
            ]
            raise ValueError(
                f"{source!r} has no texts for {name}: a hash of each text chooses its split, so equal texts share one,"
                f" and {len(set(texts)):,} of {len(texts):,} texts are different. Give more different texts, or a"
                " folder with a file for each split."
            )
