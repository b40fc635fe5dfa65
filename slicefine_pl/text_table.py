"""Tables in plain text, for ``print``."""

from collections.abc import Sequence


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
        headings: One per column.
        sections: Groups of rows, separated by a rule; a row may be shorter than the headings.
        numbers_from: First column that is aligned to the right, as are all after it; ``None`` aligns all to the left.
        title: Line above the table.
        caption: Line below it.
    """
    rows = [[*row, *[""] * (len(headings) - len(row))] for section in sections for row in section]
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    right = len(headings) if numbers_from is None else numbers_from

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if index < right else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    lines = [title, line(headings)] if title else [line(headings)]
    for section in sections:
        count = len(section)
        lines += [rule, *map(line, rows[:count])]
        del rows[:count]
    return "\n".join([*lines, caption] if caption else lines)
