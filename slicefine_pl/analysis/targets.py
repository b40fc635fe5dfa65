"""Which matrices of a network are looked at: those that a run with SliceFine would slice."""

from collections.abc import Iterable

from torch import nn

from slicefine_pl.network.names import NamePatterns
from slicefine_pl.slicing.layers.registry import SliceableMatrix
from slicefine_pl.slicing.targets import TargetSettings, find_targets


def target_matrices(net: nn.Module, targets: NamePatterns | None = None, rank: int = 1) -> list[SliceableMatrix]:
    """The matrices that ``slice_model(net, rank, targets=targets)`` would slice, in the order of ``named_modules``.

    Args:
        net: The network; its slices must be closed.
        targets: As in :func:`slicefine_pl.slicing.slice_model`.
        rank: Lines of a slice; ``targets=None`` leaves out what is narrower, in rows or in columns.

    Raises:
        ValueError: As ``slice_model``.
    """
    return find_targets(net, TargetSettings(targets, None, "auto", rank, ("column", "row"))).chosen


def weights_of(matrices: Iterable[SliceableMatrix]) -> list[nn.Parameter]:
    """The parameters in which matrices lie, each once; several may lie in one, as in a fused attention."""
    return list({id(matrix.parameter): matrix.parameter for matrix in matrices}.values())
