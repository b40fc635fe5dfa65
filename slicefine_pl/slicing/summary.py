"""How every matrix of a network is trained, or why it is not: a table for people."""

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from torch import nn

from slicefine_pl.slicing.masked import MaskedLayer
from slicefine_pl.slicing.track import SliceTrack


@dataclass(frozen=True)
class Row:
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


class Summary(tuple[Row, ...]):
    """The rows, which print as a table: ``print(handle.summary())``, in colour by ``rich.print``."""

    __slots__ = ()

    def __rich__(self) -> Table:
        """The table for rich."""
        table = Table("matrix", "module", "shape", "backend", "slice, or reason")
        for row in self:
            size = " x ".join(map(str, row.shape))
            table.add_row(row.name, row.module, size, row.backend, row.told, style="dim" * (row.backend == "frozen"))
        return table

    def __str__(self) -> str:
        console = Console(width=140, no_color=True, highlight=False)
        with console.capture() as captured:
            console.print(self.__rich__())
        return captured.get()


def summarise(
    tracks: Mapping[str, SliceTrack], skipped: Mapping[str, str], trained: Mapping[str, nn.Parameter]
) -> Summary:
    """Collect the rows: the slices, the parameters trained whole, and what is left out with the reason."""
    sliced = (_sliced(name, track) for name, track in tracks.items())
    whole = (Row(name, "", tuple(parameter.shape), "whole", "") for name, parameter in trained.items())
    frozen = (Row(name, "", (), "frozen", reason) for name, reason in skipped.items() if reason != "trained whole")
    return Summary((*sliced, *whole, *frozen))


def _sliced(name: str, track: SliceTrack) -> Row:
    piece, layer = track.piece, track.layer
    told = f"{len(piece.index)} {piece.line}s"
    kind = layer.slicefine_kind
    masked = issubclass(kind, MaskedLayer) or piece.block not in kind.slicefine_blocks(layer)
    if not masked and piece.read:
        masked, told = True, f"{told}; its weight is read past the call"
    return Row(name, layer.slicefine_dense_class.__name__, piece.shape, "mask" if masked else "compact", told)
