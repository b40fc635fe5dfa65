"""Which settings of ``SliceFineCallback`` go together."""

from slicefine_pl.slicing import AxisSchedule, Order
from slicefine_pl.slicing.directions import Basis

AT_MOVES = {"axis": "alternate", "order": "importance", "optimizer_state": "keep"}  # no effect before a move


def check_compatible(
    *, axis: AxisSchedule, interval: int | None, order: Order, optimizer_state: str, basis: Basis, checkpoint: str
) -> None:
    """Check settings that are valid each by itself.

    Raises:
        ValueError: Two of them contradict each other.
    """
    if axis == "alternate" and optimizer_state == "keep":
        raise ValueError(
            "optimizer_state='keep' does not work with axis='alternate', because the moments of a column mean"
            " nothing for a row; choose optimizer_state='reset'."
        )
    if basis != "standard" and optimizer_state == "keep":
        raise ValueError(
            "optimizer_state='keep' does not work with directions, because moments along one direction mean nothing"
            " along another; choose optimizer_state='reset', or basis='standard'."
        )
    if basis != "standard" and checkpoint == "slices":
        raise ValueError(
            "checkpoint='slices' does not work with directions: their change gives a weight back up to rounding,"
            " and a run resumes bit for bit. Choose checkpoint='model', or basis='standard'."
        )
    given = {"axis": axis, "order": order, "optimizer_state": optimizer_state}
    without_effect = [name for name, value in given.items() if AT_MOVES[name] == value and interval is None]
    if without_effect:
        name = without_effect[0]
        raise ValueError(f"{name}={given[name]!r} takes effect when slices move; set interval, such as interval=100.")
