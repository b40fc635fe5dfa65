"""File formats of tables: CSV, TSV, JSONL and Parquet, read as columns of raw values."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slicefine_pl.data.tables.values import parse_object
from slicefine_pl.optional import optional_imports

QUOTED = re.compile(r'"(?:[^"]|"")*"')


class RawTable(NamedTuple):
    """The content of a file.

    Attributes:
        unit: What ``numbers`` counts: ``"row"``, or ``"line"`` as an editor shows it.
        numbers: Number of each of the N rows in the file, from 1.
        columns: N values of each column; ``None`` stands for a missing value.
    """

    unit: str
    numbers: Sequence[int]
    columns: Mapping[str, list[Any]]

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield one mapping of column names to values per row."""
        for values in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, values, strict=True))


def split_lines(text: str) -> list[str]:
    r"""Split at ``\n`` or ``\r\n`` only. ``str.splitlines`` also splits at characters that a text may contain."""
    parts = [line.removesuffix("\r") for line in text.split("\n")]
    return parts if parts[-1] else parts[:-1]


def read_utf8(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Raises:
        ValueError: A byte is not UTF-8. The message contains its position.
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


def _read_csv(path: Path) -> RawTable:
    """Read fields that may be in double quotes. Quoted fields may contain commas, line breaks and doubled quotes."""
    reader = csv.reader(io.StringIO(read_utf8(path), newline=""), strict=True)
    remedy = "put texts with commas, quotes or line breaks into double quotes, doubling those inside"
    return _records(path, reader, remedy)


def _read_tsv(path: Path) -> RawTable:
    """Read one row per line. Quotes are text, unless they enclose a field in which all other quotes are doubled."""
    reader = csv.reader(io.StringIO(read_utf8(path), newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    raw = _records(path, reader, "replace tabs and line breaks inside texts by spaces, or write JSONL")
    columns = {name: [_unquote(field) for field in fields] for name, fields in raw.columns.items()}
    return raw._replace(columns=columns)


def _unquote(field: str) -> str:
    return field[1:-1].replace('""', '"') if QUOTED.fullmatch(field) else field


def _records(path: Path, reader: Any, remedy: str) -> RawTable:
    """Return rows of strings, since a text may be "null" or "007". The number of a row is that of its first line."""
    csv.field_size_limit(2**31 - 1)  # texts may be long
    numbers: list[int] = []
    records: list[list[str]] = []
    first_line = 1
    try:
        for record in reader:
            if record:  # empty lines are skipped
                numbers.append(first_line)
                records.append(record)
            first_line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"data file {str(path)!r} cannot be parsed from line {first_line} on: {error}; {remedy}."
        ) from error
    if not records:
        raise ValueError(f"data file {str(path)!r} is empty; its first line must name the columns.")
    header = [_unquote(name) for name in records[0]]
    _check_unique(path, header)
    for number, record in zip(numbers, records, strict=True):
        if len(record) != len(header):
            raise ValueError(
                f"data file {str(path)!r}, line {number}, has {len(record)} fields, and the first line names "
                f"{len(header)} columns; {remedy}."
            )
    columns = {name: [record[place] for record in records[1:]] for place, name in enumerate(header)}
    return RawTable("line", numbers[1:], columns)


def _check_unique(path: Path, names: Sequence[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"data file {str(path)!r} has two columns {twice[0]!r}; rename one.")


def _read_jsonl(path: Path) -> RawTable:
    numbers: list[int] = []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(split_lines(read_utf8(path)), start=1):
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
    return RawTable("line", numbers, {name: [row.get(name) for row in rows] for name in names})


def _read_parquet(path: Path) -> RawTable:
    with optional_imports():
        from pyarrow import ArrowException  # type: ignore[import-untyped]
        from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    try:
        table = ParquetFile(path).read()
    except (OSError, ArrowException) as error:
        raise ValueError(f"data file {str(path)!r} is not a readable Parquet file: {error}; write it again.") from error
    _check_unique(path, table.column_names)
    columns = {name: _values(column) for name, column in zip(table.column_names, table.columns, strict=True)}
    return RawTable("row", range(1, table.num_rows + 1), columns)


def _values(column: Any) -> list[Any]:
    """Return the values of a column. Short floats get the digits of their own type: 0.1, not 0.10000000149."""
    values: list[Any] = column.to_pylist()
    short = {"halffloat": np.float16, "float": np.float32}.get(str(column.type))
    return values if short is None else [None if each is None else float(str(short(each))) for each in values]


READERS: dict[str, Callable[[Path], RawTable]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
