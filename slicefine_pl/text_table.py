"""Format rows as a plain-text table."""

from collections.abc import Sequence
from itertools import chain


def text_table(
    headings: Sequence[str],
    sections: Sequence[Sequence[Sequence[str]]],
    *,
    numbers_from: int | None = None,
    title: str = "",
    caption: str = "",
) -> str:
    """Format rows as a table with aligned columns.

    Args:
        headings: Column headings.
        sections: Groups of rows of cells, separated by rules. A row may be shorter than the headings.
        numbers_from: Index of the first right-aligned column. ``None`` aligns all columns to the left.
        title: Line above the table.
        caption: Line below the table.

    Returns:
        The table, without a trailing newline.
    """
    full = [[[*row, *[""] * (len(headings) - len(row))] for row in section] for section in sections]
    widths = [max(map(len, column)) for column in zip(headings, *chain.from_iterable(full), strict=True)]
    right = len(headings) if numbers_from is None else numbers_from

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if index < right else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    lines = [title, line(headings)] if title else [line(headings)]
    for section in full:
        lines += [rule, *map(line, section)]
    return "\n".join([*lines, caption] if caption else lines)
