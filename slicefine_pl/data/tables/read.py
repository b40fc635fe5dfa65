"""Read the text and label columns of a table file."""

from collections.abc import Sequence
from pathlib import Path

from slicefine_pl.data.tables.formats import READERS, RawTable
from slicefine_pl.data.tables.table import Table
from slicefine_pl.data.tables.values import parse_labels, parse_text


def read_table(path: Path, text_columns: Sequence[str], label_column: str, remedy: str = "") -> Table:
    """Read texts with labels from one file.

    Args:
        path: ``.csv``, ``.tsv``, ``.jsonl`` (or ``.ndjson``) or ``.parquet`` file; text files in UTF-8.
        text_columns: Name of one column of texts, or of two for pairs of texts.
        label_column: Name of the column with the labels. A label is the text as written in the file.
        remedy: End of the message for a missing column: the settings that name the columns, if there are any.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The suffix is unknown, the file cannot be decoded or parsed, it has no rows, a column is missing, or
            a row has no text or label.
    """
    raw = _open(path)
    _check_columns(path, raw, [(*text_columns, label_column)], remedy)
    places = _places(path, raw)
    labels = parse_labels(raw.columns[label_column], places, label_column)
    return Table(str(path), _texts(raw, text_columns, places), labels, raw.numbers, raw.unit)


def read_texts(path: Path, alternatives: Sequence[Sequence[str]], remedy: str = "") -> Table:
    """Read texts without labels from one file.

    Args:
        path: As in :func:`read_table`.
        alternatives: Sets of column names. The first set that is complete in the file is read.
        remedy: As in :func:`read_table`.

    Returns:
        Table with one list of texts per column. All labels are ``None``.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: As in :func:`read_table`.
    """
    raw = _open(path)
    names = _check_columns(path, raw, alternatives, remedy)
    texts = _texts(raw, names, _places(path, raw))
    return Table(str(path), texts, [None] * len(raw.numbers), raw.numbers, raw.unit)


def _places(path: Path, raw: RawTable) -> list[str]:
    return [f"data file {str(path)!r}, {raw.unit} {number}," for number in raw.numbers]


def _texts(raw: RawTable, names: Sequence[str], places: Sequence[str]) -> list[list[str]]:
    return [
        [parse_text(value, place, name) for value, place in zip(raw.columns[name], places, strict=True)]
        for name in names
    ]


def _open(path: Path) -> RawTable:
    if not path.is_file():
        raise FileNotFoundError(f"data file {str(path)!r} does not exist; give the path of one of {sorted(READERS)}.")
    if path.suffix.lower() not in READERS:
        raise ValueError(f"data file {str(path)!r} has the unknown suffix {path.suffix!r}; use {sorted(READERS)}.")
    return READERS[path.suffix.lower()](path)


def _check_columns(path: Path, raw: RawTable, alternatives: Sequence[Sequence[str]], remedy: str) -> Sequence[str]:
    """Return the first set of names that is complete in the file. The file must have rows too."""
    found = [names for names in alternatives if all(name in raw.columns for name in names)]
    if not found:
        missing = dict.fromkeys(next(name for name in names if name not in raw.columns) for names in alternatives)
        raise ValueError(
            f"data file {str(path)!r} has no column {' and no column '.join(map(repr, missing))}; it has "
            f"{list(raw.columns)}.{remedy and ' '}{remedy}"
        )
    if not raw.numbers:
        raise ValueError(f"data file {str(path)!r} has no rows; give a file with at least one text.")
    return found[0]
