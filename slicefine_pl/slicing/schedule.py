"""Where the live slice stands after k moves.

Answers one question: which lines of a weight are live?  A *line* is a column or a row; pure integers, no tensors.

Source:  Kowsher et al., SliceFine, arXiv:2510.08513 (column sweep, row sweep, row-column alternation).  The wrap at the
end of an axis, the random first line and the permuted order are ours; the paper's text does not fix them.
"""

import random
from typing import Literal, get_args

Axis = Literal["column", "row"]
AxisSchedule = Literal["column", "row", "alternate"]
Order = Literal["sweep", "random", "importance"]


def check_choice(name: str, value: object, allowed: object) -> None:
    """Raise a ``ValueError`` that names the choices when ``value`` is none of the ``Literal``'s."""
    choices = get_args(allowed)
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, choices))}.")


def check_rank(rank: int) -> None:
    """Raise a ``ValueError`` unless ``rank`` is a positive integer."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank={rank!r} is not a number of rows or columns; choose an integer of at least 1.")


def axis_at(moves: int, schedule: AxisSchedule) -> Axis:
    """The axis of the slice after ``moves`` moves.  ``"alternate"`` starts with columns."""
    if schedule == "alternate":
        return "column" if moves % 2 == 0 else "row"
    return schedule


def visits_before(moves: int, schedule: AxisSchedule) -> int:
    """How many earlier slices had the present axis: one per move, or one per two moves for ``"alternate"``."""
    return moves // 2 if schedule == "alternate" else moves


def visiting_order(size: int, order: Order, key: str) -> list[int]:
    """All lines of one axis in the order in which slices visit them.

    Args:
        size: Number of lines on the axis.
        order: ``"random"`` permutes the lines; any other order sweeps them from a random first line.
        key: Seeds the choice.  Equal keys give equal orders in every process.

    Returns:
        A permutation of ``range(size)``.
    """
    generator = random.Random(key)
    if order == "random":
        return generator.sample(range(size), size)
    first = generator.randrange(size)
    return [(first + step) % size for step in range(size)]


def slice_indices(visits: int, rank: int, order: list[int]) -> list[int]:
    """The ``rank`` lines of the slice number ``visits``, counted from 0, along a visiting order.

    The end wraps to the beginning, so that all lines are visited equally often in the long run.

    Raises:
        ValueError: If the slice is wider than the axis.
    """
    size = len(order)
    if rank > size:
        raise ValueError(f"rank={rank} does not fit an axis of {size} lines; choose 1 <= rank <= {size}.")
    return [order[(visits * rank + offset) % size] for offset in range(rank)]
