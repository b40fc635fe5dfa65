"""Columns of a CSV file of training runs."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RunColumns = Mapping[str, NDArray[np.float64]]
"""Vectors of shape ``(R,)`` named ``sparsity``, ``nonzero_params``, ``data`` and ``loss``, one entry per run."""


def read_columns(path: Path) -> dict[str, list[str]]:
    """Read a CSV file with a header.

    Returns:
        The cells of each column, as text, by the column's name.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a CSV file with as many cells in each line as in the header.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"file {str(path)!r} does not exist; give a CSV file with a header and one run per line."
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            rows = [row for row in reader if row]  # a blank line is not a row
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(
            f"file {str(path)!r} is not a CSV file ({error}); give a header and one run per line."
        ) from error
    if not header:
        raise ValueError(f"file {str(path)!r} is empty; give a header and one run per line.")
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(
                f"file {str(path)!r}, run {number} has {len(row)} cells, and the header has {len(header)}; give one "
                "cell per column."
            )
    return {name: [row[index] for row in rows] for index, name in enumerate(header)}


def to_floats(cells: Sequence[str]) -> NDArray[np.float64]:
    """Convert cells to numbers, shape ``(len(cells),)``; NaN for a cell that is not a number."""
    return np.array([_to_float(cell) for cell in cells], dtype=np.float64)


def _to_float(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")
