"""Select the matrices to analyze: those that ``slice_model`` would slice."""

from collections.abc import Iterable

from torch import nn

from slicefine_pl.network.names import NamePatterns
from slicefine_pl.slicing.layers.registry import SliceableMatrix
from slicefine_pl.slicing.obstacles import TargetSettings
from slicefine_pl.slicing.targets import find_targets


def target_matrices(net: nn.Module, targets: NamePatterns | None = None, rank: int = 1) -> list[SliceableMatrix]:
    """Return the matrices that ``slice_model(net, rank, targets=targets)`` would slice, in module order.

    Args:
        net: The network; its slices must be closed.
        targets: Layers, as in :func:`slicefine_pl.slicing.slice_model`.
        rank: Rows or columns of a slice. ``targets=None`` leaves out matrices with fewer of either.

    Raises:
        ValueError: ``slice_model`` would raise it.
    """
    return find_targets(net, TargetSettings(targets, None, "auto", rank, ("column", "row"))).chosen


def weights_of(matrices: Iterable[SliceableMatrix]) -> list[nn.Parameter]:
    """Return the parameters that contain the matrices, each once; fused attention has several matrices in one."""
    return list({id(matrix.parameter): matrix.parameter for matrix in matrices}.values())
