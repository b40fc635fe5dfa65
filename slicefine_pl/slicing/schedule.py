"""Which lines of a matrix a slice covers after a number of moves.

A *line* is a row or a column. This file computes with integers only; it knows neither tensors nor layers.

Source:  Kowsher et al., SliceFine, arXiv:2510.08513, for the column sweep, the row sweep and the alternation of both.
The paper does not say where a sweep starts, what happens at the end of an axis, or which permutation is used. The
random start, the wrap-around and the random order are our choices.
"""

import random
from typing import Literal

Axis = Literal["column", "row"]
"""Whether a slice consists of columns (inputs) or of rows (outputs)."""

AxisSchedule = Literal["column", "row", "alternate"]
"""Which axis each slice has: always the same, or columns and rows in turn."""

Order = Literal["sweep", "random", "importance"]
"""In which order slices visit the lines of an axis."""


def check_rank(rank: int) -> None:
    """Check that a rank is a positive integer.

    Raises:
        ValueError: It is not.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank={rank!r} is not a number of rows or columns; choose an integer of at least 1.")


def axis_at(moves: int, schedule: AxisSchedule) -> Axis:
    """The axis of the slice after ``moves`` moves. ``"alternate"`` starts with columns."""
    if schedule == "alternate":
        return "column" if moves % 2 == 0 else "row"
    return schedule


def visits_before(moves: int, schedule: AxisSchedule) -> int:
    """How many earlier slices had the present axis: one per move, or one per two moves for ``"alternate"``."""
    return moves // 2 if schedule == "alternate" else moves


def visiting_order(size: int, order: Order, key: str) -> list[int]:
    """All lines of an axis, in the order in which slices visit them.

    Args:
        size: Number of lines.
        order: ``"random"`` permutes the lines. Any other order takes them one after the other, from a random line on.
        key: Seed. Equal keys give equal orders on every process.

    Returns:
        A permutation of ``range(size)``.
    """
    generator = random.Random(key)
    if order == "random":
        return generator.sample(range(size), size)
    first = generator.randrange(size)
    return [(first + step) % size for step in range(size)]


def slice_indices(visits: int, rank: int, order: list[int]) -> list[int]:
    """The lines of slice number ``visits``, counted from 0, along a visiting order.

    The order wraps around at its end, so that every line is visited equally often in the long run.

    Args:
        visits: Number of the slice.
        rank: Number of lines (R).
        order: A permutation of all lines, from :func:`visiting_order`.

    Returns:
        R line indices.

    Raises:
        ValueError: The slice is wider than the axis.
    """
    size = len(order)
    if rank > size:
        raise ValueError(f"rank={rank} does not fit an axis of {size} lines; choose 1 <= rank <= {size}.")
    return [order[(visits * rank + offset) % size] for offset in range(rank)]
