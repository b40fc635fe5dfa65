"""Texts and labels from a file: CSV, TSV, JSONL or Parquet.

Answers: what do the named columns hold, row by row?
Nothing is dropped or guessed: what is missing raises, with its row.
"""

import csv
import hashlib
import io
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pyarrow import ArrowException  # type: ignore[import-untyped]
from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

from slicefine_pl.data.cells import labels_of, parse_object, text_of


class Rows(NamedTuple):
    """The content of a file.

    Attributes:
        unit: What ``numbers`` counts: rows, or the lines that an editor shows.
        numbers: Number of each of the N rows in the file, from 1.
        columns: N cells of each column; ``None`` where a cell is missing.
    """

    unit: str
    numbers: Sequence[int]
    columns: Mapping[str, list[Any]]

    def records(self) -> Iterator[dict[str, Any]]:
        """One mapping of names to cells per row."""
        for cells in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, cells, strict=True))


@dataclass(frozen=True)
class Table:
    """Texts with their labels.

    Attributes:
        source: Where they come from, for messages.
        columns: One list of N texts, or two for pairs of texts.
        labels: N labels, as texts; all ``None`` where there are none.
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

    def place(self, row: int) -> str:
        """Source and number of a row (from 0), for messages."""
        return f"{self.source!r}, {self.unit} {self.rows[row]},"

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
        label_column: Column with the labels; each is the text that stands in the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The suffix is unknown, the file cannot be decoded or parsed, has no rows, lacks a column, or has a
            row without text or label.
    """
    rows = _open(path)
    _check_columns(path, rows, [(*text_columns, label_column)])
    places = _places(path, rows)
    labels = labels_of(rows.columns[label_column], places, label_column)
    return Table(str(path), _texts(rows, text_columns, places), labels, rows.numbers, rows.unit)


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
    rows = _open(path)
    names = _check_columns(path, rows, alternatives)
    texts = _texts(rows, names, _places(path, rows))
    return Table(str(path), texts, [None] * len(rows.numbers), rows.numbers, rows.unit)


def _places(path: Path, rows: Rows) -> list[str]:
    return [f"data file {str(path)!r}, {rows.unit} {number}," for number in rows.numbers]


def _texts(rows: Rows, names: Sequence[str], places: Sequence[str]) -> list[list[str]]:
    return [
        [text_of(value, place, name) for value, place in zip(rows.columns[name], places, strict=True)] for name in names
    ]


def _open(path: Path) -> Rows:
    if not path.is_file():
        raise FileNotFoundError(f"data file {str(path)!r} does not exist; give the path of one of {sorted(READERS)}.")
    if path.suffix.lower() not in READERS:
        raise ValueError(f"data file {str(path)!r} has the unknown suffix {path.suffix!r}; use {sorted(READERS)}.")
    return READERS[path.suffix.lower()](path)


def _check_columns(path: Path, rows: Rows, alternatives: Sequence[Sequence[str]]) -> Sequence[str]:
    """The first alternative that the file has; it must have rows too."""
    found = [names for names in alternatives if all(name in rows.columns for name in names)]
    if not found:
        missing = dict.fromkeys(next(name for name in names if name not in rows.columns) for names in alternatives)
        raise ValueError(
            f"data file {str(path)!r} has no column {' and no column '.join(map(repr, missing))}; it has "
            f"{list(rows.columns)}."
        )
    if not rows.numbers:
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
    rows = _records(path, reader, "replace tabs and line breaks inside texts by spaces, or write JSONL")
    columns = {name: [_unquoted(field) for field in fields] for name, fields in rows.columns.items()}
    return rows._replace(columns=columns)


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
    _check_unique(path, header)
    for number, record in zip(numbers, records, strict=True):
        if len(record) != len(header):
            raise ValueError(
                f"data file {str(path)!r}, line {number}, has {len(record)} fields, and the first line names "
                f"{len(header)} columns; {cure}."
            )
    columns = {name: [record[place] for record in records[1:]] for place, name in enumerate(header)}
    return Rows("line", numbers[1:], columns)


def _check_unique(path: Path, names: Sequence[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"data file {str(path)!r} has two columns {twice[0]!r}; rename one.")


def _jsonl(path: Path) -> Rows:
    numbers: list[int] = []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines(decode(path)), start=1):
        if not line.strip():
            continue
        try:
            rows.append(parse_object(line))
        except ValueError as error:
            raise ValueError(f"data file {str(path)!r}, line {number}, {error}") from error
        numbers.append(number)
    if not rows:
        raise ValueError(f"data file {str(path)!r} is empty; write one JSON object per line.")
    names = dict.fromkeys(name for row in rows for name in row)
    return Rows("line", numbers, {name: [row.get(name) for row in rows] for name in names})


def _parquet(path: Path) -> Rows:
    try:
        table = ParquetFile(path).read()
    except (OSError, ArrowException) as error:
        raise ValueError(f"data file {str(path)!r} is no readable Parquet file: {error}.") from error
    _check_unique(path, table.column_names)
    columns = {name: _cells(column) for name, column in zip(table.column_names, table.columns, strict=True)}
    return Rows("row", range(1, table.num_rows + 1), columns)


def _cells(column: Any) -> list[Any]:
    """The values of a column; floats of few digits without the digits that float64 adds, 0.1 and not 0.10000000149."""
    cells: list[Any] = column.to_pylist()
    few = {"halffloat": np.float16, "float": np.float32}.get(str(column.type))
    return cells if few is None else [None if cell is None else float(str(few(cell))) for cell in cells]


READERS: dict[str, Callable[[Path], Rows]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
}
