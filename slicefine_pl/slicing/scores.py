"""What backward passes add up, so that a slice can choose its next position."""

import torch.distributed as dist
from torch import Tensor

from slicefine_pl.slicing.layout import lines_along
from slicefine_pl.slicing.schedule import Axis


def line_norms(gradient: Tensor, axis: Axis) -> Tensor:
    """The norm of every column or row of a dense gradient ``(O, I, ...)``, shape ``(I,)`` or ``(O,)``."""
    return zero_nonfinite(lines_along(gradient, axis).flatten(1).float().norm(dim=1))


def zero_nonfinite(values: Tensor) -> Tensor:
    """Replace NaN and infinity by zero: a step whose gradients overflow is skipped, and must not count."""
    return values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def sum_over_processes(values: Tensor) -> None:
    """Replace values by their sum over all processes, in place: a collective, if there are several."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
