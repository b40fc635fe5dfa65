"""A printable table of how every matrix of a network is trained, or why it is not."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from torch import nn

from slicefine_pl.slicing.cursor import SliceCursor
from slicefine_pl.slicing.layers.masked import MaskedLayer
from slicefine_pl.slicing.obstacles import TRAINED_IN_FULL
from slicefine_pl.text_table import text_table


@dataclass(frozen=True)
class SummaryRow:
    """One row of the table.

    Attributes:
        name: Name of a matrix, or of a parameter that is trained in full.
        module: Class of its module; empty for parameters that are trained in full.
        shape: Shape of the matrix, ``(O, I, ...)``.
        backend: ``"compact"``, ``"mask"``, ``"full"`` or ``"frozen"``.
        detail: The slice, such as ``"32 columns"``, or the reason why there is none.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    backend: str
    detail: str


@dataclass(frozen=True)
class SliceCounts:
    """Numbers of parameter entries.

    Attributes:
        in_slices: Entries of all slices at their present positions.
        in_full: Entries of the parameters that are trained in full, such as a new output head.
        visited: Entries of the sliced matrices that slices have trained. Those of the present positions count from the
            next :meth:`SliceHandle.write` or move on.
        sliced: Entries of all sliced matrices.
        total: Entries of all parameters of the network.
    """

    in_slices: int
    in_full: int
    visited: int
    sliced: int
    total: int

    @property
    def trained(self) -> int:
        """Entries that the optimizer updates at present."""
        return self.in_slices + self.in_full

    @property
    def coverage(self) -> float:
        """Fraction of the sliced matrices that slices have trained, in [0, 1]."""
        return self.visited / self.sliced


class SliceSummary(tuple[SummaryRow, ...]):
    """The rows of the table, as a tuple that prints as text: ``print(handle.summary())``.

    Attributes:
        counts: How many entries are trained, and how many there are.
    """

    counts: SliceCounts

    def __new__(cls, rows: Iterable[SummaryRow], counts: SliceCounts) -> Self:
        summary = super().__new__(cls, rows)
        summary.counts = counts
        return summary

    def __getnewargs__(self) -> tuple[tuple[SummaryRow, ...], SliceCounts]:
        return tuple(self), self.counts  # copy and pickle call __new__ with these

    def __str__(self) -> str:
        return text_table(
            ("matrix", "module", "shape", "backend", "slice, or reason"),
            [[(row.name, row.module, " x ".join(map(str, row.shape)), row.backend, row.detail) for row in self]],
            caption=f"{self.counts.trained:,} of {self.counts.total:,} parameters are trained at a time",
        )


def summarize(
    cursors: Mapping[str, SliceCursor],
    skipped: Mapping[str, str],
    fully_trained: Mapping[str, nn.Parameter],
    counts: SliceCounts,
) -> SliceSummary:
    """Collect the rows: slices, then parameters trained in full, then frozen matrices.

    Args:
        cursors: The slices, by name of their matrix.
        skipped: Matrices that are not sliced, and the reason for each.
        fully_trained: Parameters that are trained in full, by name.
        counts: The counts for the caption.
    """
    sliced = (_row(name, cursor) for name, cursor in cursors.items())
    full = (SummaryRow(name, "", tuple(parameter.shape), "full", "") for name, parameter in fully_trained.items())
    left = ((name, reason) for name, reason in skipped.items() if reason != TRAINED_IN_FULL)
    frozen = (SummaryRow(name, "", (), "frozen", reason) for name, reason in left)
    return SliceSummary((*sliced, *full, *frozen), counts)


def _row(name: str, cursor: SliceCursor) -> SummaryRow:
    slice_, layer = cursor.slice_, cursor.layer
    detail = f"{len(slice_.index)} {slice_.kind}"
    implementation = layer.slicefine_implementation
    masked = issubclass(implementation, MaskedLayer) or slice_.layout not in implementation.slicefine_layouts(layer)
    if not masked and slice_.read_directly:
        masked, detail = True, f"{detail}; its weight is read without calling the layer"
    return SummaryRow(name, layer.slicefine_dense_class.__name__, slice_.shape, "mask" if masked else "compact", detail)
