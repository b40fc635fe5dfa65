"""Texts and labels from a file: CSV, TSV, JSONL or Parquet.

Answers: what do the named columns hold, row by row?
Nothing is dropped or guessed: what is missing raises, with its row.
"""

import csv
import hashlib
import io
import json
import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pandas as pd

Rows = tuple[str, Sequence[int], pd.DataFrame]  # what is counted, the number of each row, and the rows


@dataclass(frozen=True)
class Table:
    """Texts with their labels.

    Attributes:
        source: Where they come from, for messages.
        columns: One list of N texts, or two for pairs of texts.
        labels: N labels: all int, all float, or all str; all ``None`` where there are none.
        rows: Number of each row in the source, from 1, for messages.
        unit: What ``rows`` counts: rows, or the lines that an editor shows.
    """

    source: str
    columns: list[list[str]]
    labels: list[Any]
    rows: Sequence[int]
    unit: str = "row"

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.labels)

    def select(self, rows: Sequence[int]) -> "Table":
        """A table of some of the rows."""
        columns = [[column[row] for row in rows] for column in self.columns]
        return Table(
            self.source, columns, [self.labels[row] for row in rows], [self.rows[row] for row in rows], self.unit
        )


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
    unit, rows, frame = _open(path)
    _check_columns(path, frame, [(*text_columns, label_column)])
    places = [f"data file {str(path)!r}, {unit} {row}," for row in rows]
    columns = [[_text(value, place, name) for value, place in zip(frame[name], places, strict=True)]
               for name in text_columns]  # fmt: skip
    labels = _labels(frame[label_column].tolist(), places, label_column)
    return Table(str(path), columns, labels, rows, unit)


def read_texts(path: Path, alternatives: Sequence[Sequence[str]]) -> Table:
    """Read texts without labels from one file.

    Args:
        path: As for ``read_table``.
        alternatives: Names of columns; the first set of which the file has all is read.

    Returns:
        One list of texts per column; every label is ``None``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: As for ``read_table``.
    """
    unit, rows, frame = _open(path)
    names = _check_columns(path, frame, alternatives)
    places = [f"data file {str(path)!r}, {unit} {row}," for row in rows]
    columns = [[_text(value, place, name) for value, place in zip(frame[name], places, strict=True)] for name in names]
    return Table(str(path), columns, [None] * len(rows), rows, unit)


def _open(path: Path) -> Rows:
    if not path.is_file():
        raise FileNotFoundError(f"data file {str(path)!r} does not exist; give the path of one of {sorted(READERS)}.")
    if path.suffix.lower() not in READERS:
        raise ValueError(f"data file {str(path)!r} has the unknown suffix {path.suffix!r}; use {sorted(READERS)}.")
    return READERS[path.suffix.lower()](path)


def _check_columns(path: Path, frame: pd.DataFrame, alternatives: Sequence[Sequence[str]]) -> Sequence[str]:
    """The first alternative that the file has; it must have rows too."""
    found = [names for names in alternatives if all(name in frame.columns for name in names)]
    if not found:
        missing = [next(name for name in names if name not in frame.columns) for names in alternatives]
        raise ValueError(
            f"data file {str(path)!r} has no column {' and no column '.join(map(repr, missing))}; it has "
            f"{list(map(str, frame.columns))}."
        )
    if frame.empty:
        raise ValueError(f"data file {str(path)!r} has no rows; give a file with at least one text.")
    return found[0]


def lines(text: str) -> list[str]:
    r"""Split at ``\n`` or ``\r\n`` only: ``str.splitlines`` also splits at characters that a text may hold."""
    parts = [line.removesuffix("\r") for line in text.split("\n")]
    return parts if parts[-1] else parts[:-1]


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


QUOTED = re.compile(r'"(?:[^"]|"")*"')


def _csv(path: Path) -> Rows:
    """Fields in double quotes may hold commas, line breaks and doubled quotes; any other use of quotes raises."""
    reader = csv.reader(io.StringIO(decode(path), newline=""), strict=True)
    return _records(
        path, reader, "put texts with commas, quotes or line breaks into double quotes, doubling those inside"
    )


def _tsv(path: Path) -> Rows:
    """A line is a row; quotes are text, except around a whole field in which all others are doubled."""
    reader = csv.reader(io.StringIO(decode(path), newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    unit, rows, frame = _records(path, reader, "replace tabs and line breaks inside texts by spaces, or write JSONL")
    return unit, rows, frame.map(_unquoted)


def _unquoted(field: str) -> str:
    return field[1:-1].replace('""', '"') if QUOTED.fullmatch(field) else field


def _records(path: Path, reader: Any, cure: str) -> Rows:
    """Rows as strings, since a text may be "null" or "007"; a row's number is that of its first line."""
    csv.field_size_limit(2**31 - 1)  # a text may be long
    numbers: list[int] = []
    records: list[list[str]] = []
    begin = 1
    try:
        for record in reader:
            if record:  # an empty line is no row
                numbers.append(begin)
                records.append(record)
            begin = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"data file {str(path)!r} cannot be parsed from line {begin} on: {error}; {cure}.") from error
    if not records:
        raise ValueError(f"data file {str(path)!r} is empty; its first line must name the columns.")
    header = [_unquoted(name) for name in records[0]]
    if twice := [name for name in header if header.count(name) > 1]:
        raise ValueError(f"data file {str(path)!r} has two columns {twice[0]!r}; rename one.")
    for number, record in zip(numbers, records, strict=True):
        if len(record) != len(header):
            raise ValueError(
                f"data file {str(path)!r}, line {number}, has {len(record)} fields, and the first line names "
                f"{len(header)} columns; {cure}."
            )
    return "line", numbers[1:], pd.DataFrame(records[1:], columns=pd.Index(header), dtype=object)


def _jsonl(path: Path) -> Rows:
    numbers: list[int] = []
    rows = []
    for number, line in enumerate(lines(decode(path)), start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            raise ValueError(f"data file {str(path)!r}, line {number}, is not JSON: {error.msg}.") from error
        if row is not None and not isinstance(row, dict):
            raise ValueError(f"data file {str(path)!r}, line {number}, is no JSON object; write one object per line.")
        if row is not None:
            numbers.append(number)
            rows.append(row)
    if not rows:
        raise ValueError(f"data file {str(path)!r} is empty; write one JSON object per line.")
    return "line", numbers, pd.DataFrame(rows, dtype=object)


def _parquet(path: Path) -> Rows:
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        raise ValueError(f"data file {str(path)!r} is no readable Parquet file: {error}.") from error
    return "row", range(1, len(frame) + 1), frame


READERS: dict[str, Callable[[Path], Rows]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
}


def _text(value: Any, place: str, column: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place} has no text in column {column!r} but {value!r}.")
    return value


def _labels(values: list[Any], places: Sequence[str], column: str) -> list[Any]:
    """Labels as one type: int where all are whole, else float where all are numbers, else str."""
    for value, place in zip(values, places, strict=True):
        if value is None or value == "" or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
            raise ValueError(f"{place} has no label in column {column!r}.")
    texts = [str(value).strip() for value in values]
    if any("_" in text for text in texts):
        return texts  # Python would take "1_0" for 10
    for number in (int, float):
        try:
            labels = [number(text) for text in texts]
        except ValueError:
            continue
        if bad := [row for row, label in enumerate(labels) if not math.isfinite(label)]:
            raise ValueError(f"{places[bad[0]]} has the label {texts[bad[0]]!r} in {column!r}; correct it.")
        return labels
    return texts
