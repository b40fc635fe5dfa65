"""Texts and labels from a file: CSV, TSV, JSONL or Parquet.

Answers: what do the named columns hold, row by row?
Nothing is dropped or guessed: what is missing raises, with its row.
"""

import hashlib
import io
import json
import math
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Table:
    """Texts with their labels.

    Attributes:
        source: Where they come from, for messages.
        columns: One list of N texts, or two for pairs of texts.
        labels: N labels: all int, all float, or all str.
        rows: Number of each row in the source, from 1, for messages.
    """

    source: str
    columns: list[list[str]]
    labels: list[Any]
    rows: Sequence[int]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.labels)

    def select(self, rows: Sequence[int]) -> "Table":
        """A table of some of the rows."""
        columns = [[column[row] for row in rows] for column in self.columns]
        return Table(self.source, columns, [self.labels[row] for row in rows], [self.rows[row] for row in rows])


def normalise(text: str) -> str:
    """One spelling for texts that differ in case, white space or Unicode form only."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_by_text(table: Table, shares: Mapping[str, int]) -> dict[str, Table]:
    """Share the rows out by a hash of the text: the same text always goes the same way.

    The split depends on nothing else: not on order, seed, or which other texts there are.

    Args:
        table: The rows.
        shares: Percent of the texts that each split gets; they add up to 100.
    """
    bounds = list(accumulate(shares.values()))
    rows: list[list[int]] = [[] for _ in shares]
    for row, texts in enumerate(zip(*table.columns, strict=True)):
        digest = hashlib.sha256("\n".join(map(normalise, texts)).encode()).digest()
        rows[bisect_right(bounds, int.from_bytes(digest[:8], "big") % 100)].append(row)
    return {name: table.select(selected) for name, selected in zip(shares, rows, strict=True)}


def read_table(path: Path, text_columns: Sequence[str], label_column: str) -> Table:
    """Read one file.

    Args:
        path: ``.csv``, ``.tsv``, ``.jsonl`` (or ``.ndjson``) or ``.parquet``; text files in UTF-8.
        text_columns: One column of texts, or two for pairs of texts.
        label_column: Column of integers, numbers or names.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The suffix is unknown, the file cannot be decoded or parsed, has no rows, lacks a column, or has a
            row without text or label.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data file {str(path)!r} does not exist; give the path of one of {sorted(READERS)}.")
    if path.suffix.lower() not in READERS:
        raise ValueError(f"data file {str(path)!r} has the unknown suffix {path.suffix!r}; use {sorted(READERS)}.")
    frame = READERS[path.suffix.lower()](path)
    if missing := [name for name in (*text_columns, label_column) if name not in frame.columns]:
        raise ValueError(
            f"data file {str(path)!r} has no column {missing[0]!r}; it has {list(map(str, frame.columns))}."
        )
    if frame.empty:
        raise ValueError(f"data file {str(path)!r} has no rows; give a file with at least one labelled text.")
    columns = [[_text(value, path, name, row) for row, value in enumerate(frame[name])] for name in text_columns]
    labels = _labels(frame[label_column].tolist(), path, label_column)
    return Table(str(path), columns, labels, range(1, len(labels) + 1))


def decode(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Raises:
        ValueError: Some byte is not UTF-8; the message gives its place.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"file {str(path)!r} is not UTF-8: byte {content[error.start]:#04x} at offset {error.start} (line {line}); "
            "convert it to UTF-8."
        ) from error


def _delimited(separator: str) -> Callable[[Path], pd.DataFrame]:
    def read(path: Path) -> pd.DataFrame:
        try:  # as strings: a text may be "null" or "007"
            return pd.read_csv(io.StringIO(decode(path)), sep=separator, dtype=str, keep_default_na=False)
        except pd.errors.EmptyDataError as error:
            raise ValueError(f"data file {str(path)!r} is empty; its first line must name the columns.") from error
        except pd.errors.ParserError as error:
            raise ValueError(f"data file {str(path)!r} cannot be parsed: {str(error).strip()}.") from error

    return read


def _jsonl(path: Path) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(decode(path).splitlines(), start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            raise ValueError(f"data file {str(path)!r}, line {number}, is not JSON: {error.msg}.") from error
        if row is not None and not isinstance(row, dict):
            raise ValueError(f"data file {str(path)!r}, line {number}, is no JSON object; write one object per line.")
        rows += [] if row is None else [row]
    if not rows:
        raise ValueError(f"data file {str(path)!r} is empty; write one JSON object per line.")
    return pd.DataFrame(rows, dtype=object)


def _parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        raise ValueError(f"data file {str(path)!r} is no readable Parquet file: {error}.") from error


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
}


def _text(value: Any, path: Path, column: str, row: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"data file {str(path)!r}, row {row + 1}, has no text in column {column!r} but {value!r}.")
    return value


def _labels(values: list[Any], path: Path, column: str) -> list[Any]:
    """Labels as one type: int where all are whole, else float where all are numbers, else str."""
    for row, value in enumerate(values):
        if value is None or value == "" or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
            raise ValueError(f"data file {str(path)!r}, row {row + 1}, has no label in column {column!r}.")
    texts = [str(value).strip() for value in values]
    for number in (int, float):
        try:
            labels = [number(text) for text in texts]
        except ValueError:
            continue
        if bad := [row for row, label in enumerate(labels) if not math.isfinite(label)]:
            raise ValueError(
                f"data file {str(path)!r}, row {bad[0] + 1}, has the label {texts[bad[0]]!r} in {column!r}."
            )
        return labels
    return texts
