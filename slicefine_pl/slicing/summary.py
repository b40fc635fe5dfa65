"""How every matrix of a network is trained, or why it is not: a table for people."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from torch import nn

from slicefine_pl.slicing.cursor import SliceCursor
from slicefine_pl.slicing.layers.masked import MaskedLayer
from slicefine_pl.text_table import text_table


@dataclass(frozen=True)
class SummaryRow:
    """One line of the table.

    Attributes:
        name: Of a matrix, or of a parameter that is trained whole.
        module: Class of its module; empty for whole parameters.
        shape: ``(O, I, ...)``.
        backend: ``"compact"``, ``"mask"``, ``"full"`` or ``"frozen"``.
        detail: Which lines are live, or why none are.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    backend: str
    detail: str


@dataclass(frozen=True)
class SliceCounts:
    """How many numbers are, and were, trained.

    Attributes:
        in_slices: In the slices that are open now.
        in_full: In the parameters that are trained whole, such as a new head.
        visited: Entries of the sliced weights that have been live at least once.
        sliced: Entries of all sliced weights.
        total: Entries of all parameters of the network.
    """

    in_slices: int
    in_full: int
    visited: int
    sliced: int
    total: int

    @property
    def trained(self) -> int:
        """Numbers that the optimizer updates now."""
        return self.in_slices + self.in_full

    @property
    def coverage(self) -> float:
        """Share of the sliced weights that have been live at least once, in [0, 1]."""
        return self.visited / self.sliced


class SliceSummary(tuple[SummaryRow, ...]):
    """The rows, which print as a table: ``print(handle.summary())``.

    Attributes:
        counts: How many numbers are trained, and how many there are.
    """

    counts: SliceCounts

    def __new__(cls, rows: Iterable[SummaryRow], counts: SliceCounts) -> Self:
        summary = super().__new__(cls, rows)
        summary.counts = counts
        return summary

    def __getnewargs__(self) -> tuple[tuple[SummaryRow, ...], SliceCounts]:
        return tuple(self), self.counts  # for copies

    def __str__(self) -> str:
        return text_table(
            ("matrix", "module", "shape", "backend", "slice, or reason"),
            [[(row.name, row.module, " x ".join(map(str, row.shape)), row.backend, row.detail) for row in self]],
            caption=f"{self.counts.trained:,} of {self.counts.total:,} parameters are trained at a time",
        )


def summarize(
    cursors: Mapping[str, SliceCursor],
    skipped: Mapping[str, str],
    trained: Mapping[str, nn.Parameter],
    counts: SliceCounts,
) -> SliceSummary:
    """Collect the rows: the slices, the parameters trained whole, and what is left out with the reason."""
    sliced = (_sliced(name, cursor) for name, cursor in cursors.items())
    whole = (SummaryRow(name, "", tuple(parameter.shape), "full", "") for name, parameter in trained.items())
    frozen = (
        SummaryRow(name, "", (), "frozen", reason) for name, reason in skipped.items() if reason != "trained in full"
    )
    return SliceSummary((*sliced, *whole, *frozen), counts)


def _sliced(name: str, cursor: SliceCursor) -> SummaryRow:
    slice_, layer = cursor.slice_, cursor.layer
    detail = f"{len(slice_.index)} {slice_.axis}s"
    implementation = layer.slicefine_implementation
    masked = issubclass(implementation, MaskedLayer) or slice_.layout not in implementation.slicefine_layouts(layer)
    if not masked and slice_.read_directly:
        masked, detail = True, f"{detail}; its weight is read past the call"
    return SummaryRow(name, layer.slicefine_dense_class.__name__, slice_.shape, "mask" if masked else "compact", detail)
