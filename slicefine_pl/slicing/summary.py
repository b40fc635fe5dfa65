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
        backend: ``"compact"``, ``"mask"``, ``"whole"`` or ``"frozen"``.
        told: Which lines are live, or why none are.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    backend: str
    told: str


@dataclass(frozen=True)
class SliceCounts:
    """How many numbers are, and were, trained.

    Attributes:
        live: In the slices that are open now.
        whole: In the parameters that are trained whole, such as a new head.
        visited: Entries of the sliced weights that have been live at least once.
        target: Entries of all sliced weights.
        total: Entries of all parameters of the network.
    """

    live: int
    whole: int
    visited: int
    target: int
    total: int

    @property
    def trained(self) -> int:
        """Numbers that the optimizer updates now."""
        return self.live + self.whole

    @property
    def coverage(self) -> float:
        """Share of the sliced weights that have been live at least once, in [0, 1]."""
        return self.visited / self.target


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
            [[(row.name, row.module, " x ".join(map(str, row.shape)), row.backend, row.told) for row in self]],
            caption=f"{self.counts.trained:,} of {self.counts.total:,} parameters are trained at a time",
        )


def summarize(
    tracks: Mapping[str, SliceCursor],
    skipped: Mapping[str, str],
    trained: Mapping[str, nn.Parameter],
    counts: SliceCounts,
) -> SliceSummary:
    """Collect the rows: the slices, the parameters trained whole, and what is left out with the reason."""
    sliced = (_sliced(name, track) for name, track in tracks.items())
    whole = (SummaryRow(name, "", tuple(parameter.shape), "whole", "") for name, parameter in trained.items())
    frozen = (SummaryRow(name, "", (), "frozen", reason) for name, reason in skipped.items() if reason != "trained whole")
    return SliceSummary((*sliced, *whole, *frozen), counts)


def _sliced(name: str, track: SliceCursor) -> SummaryRow:
    piece, layer = track.piece, track.layer
    told = f"{len(piece.index)} {piece.axis}s"
    kind = layer.slicefine_class
    masked = issubclass(kind, MaskedLayer) or piece.layout not in kind.slicefine_layouts(layer)
    if not masked and piece.read_directly:
        masked, told = True, f"{told}; its weight is read past the call"
    return SummaryRow(name, layer.slicefine_dense_class.__name__, piece.shape, "mask" if masked else "compact", told)
