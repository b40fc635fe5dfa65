"""Values of a table: texts, labels and numbers.

A label is the text as written in the file. Nothing is rounded, trimmed or converted: ``007``, ``7`` and ``7.0`` are
three labels, and so are ``true`` and ``True`` two. Parquet stores values instead of texts: integers become their
digits, floats their shortest decimal form (``1.0``), booleans ``true`` and ``false``.
"""

import json
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*", re.ASCII)
LARGEST = 3.4028234663852886e38  # largest float32, in which models compute


class JsonNumber(str):
    """A number of a JSON file, with its digits as in the file."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return the digits without the quotes that a text has."""
        return str(self)


def parse_object(line: str) -> dict[str, Any]:
    """Parse one JSON object. Its numbers become :class:`JsonNumber`.

    Raises:
        ValueError: The line is not a JSON object, or contains a field twice.
    """
    try:
        row = json.loads(
            line,
            parse_int=JsonNumber,
            parse_float=JsonNumber,
            parse_constant=JsonNumber,
            object_pairs_hook=_unique_fields,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg}.") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply; write one flat object per line.") from error
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object; write one object per line.")
    return row


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"has the field {twice!r} twice; remove one.")
    return fields


def parse_text(value: Any, place: str, column: str) -> str:
    """Return the text in a cell.

    Args:
        value: Value of the cell.
        place: File and row, for messages.
        column: Name of the column, for messages.

    Raises:
        ValueError: The value is missing, blank, not a text, or contains a lone surrogate.
    """
    if not isinstance(value, str) or isinstance(value, JsonNumber) or not value.strip():
        raise ValueError(f"{place} has no text in column {column!r} but {value!r}.")
    return check_characters(value, f"{place} has in column {column!r}")


def check_characters(text: str, place: str) -> str:
    """Return ``text``, unless it contains a lone surrogate, which represents bytes that are not UTF-8.

    Raises:
        ValueError: It contains one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place} the text {text[:40]!a}, where character {error.start + 1} is not Unicode; write it as UTF-8."
        ) from error
    return text


def parse_labels(values: Sequence[Any], places: Sequence[str], column: str) -> list[str]:
    """Return the labels of a column, as texts.

    Args:
        values: Values of the column.
        places: File and row of each value, for messages.
        column: Name of the column, for messages.

    Raises:
        ValueError: A label is missing, blank or nested, or is a number in one row and a text in another.
    """
    labels = [_label(value, place, column) for value, place in zip(values, places, strict=True)]
    first: dict[str, int] = {}
    for row, label in enumerate(labels):
        known = first.setdefault(label, row)
        if type(values[known]) is not type(values[row]):
            raise ValueError(
                f"{places[row]} has the label {label} in column {column!r} as a {_kind(values[row])}, and "
                f"{places[known].rstrip(',')} as a {_kind(values[known])}; write all of them alike."
            )
    return labels


def _label(value: Any, place: str, column: str) -> str:
    if _is_missing(value):
        raise ValueError(f"{place} has no label in column {column!r}.")
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float | Decimal):
        raise ValueError(f"{place} has {value!r} in column {column!r}, which is not a label; write a text or a number.")
    return check_characters(str(value), f"{place} has in column {column!r}")


def _is_missing(value: Any) -> bool:
    if isinstance(value, JsonNumber):
        return value == "NaN"  # Python's json writes a missing number like this
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _kind(value: Any) -> str:
    return "boolean" if isinstance(value, bool) else "text" if type(value) is str else "number"


def parse_number(label: str, place: str) -> float:
    """Return the number that a label is, for regression.

    Raises:
        ValueError: The label is not a decimal number, or is too large for float32.
    """
    if not NUMBER.fullmatch(label):
        raise ValueError(
            f"{place} has the label {label!r}, which is not a number; correct it, or set task='classification'."
        )
    value = float(label)
    if abs(value) > LARGEST:
        raise ValueError(f"{place} has the label {label!r}, which float32 cannot represent; scale the labels down.")
    return value
