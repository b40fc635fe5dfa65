"""Masks as tensors: apply one in place, and store one as bits.

A mask is a bool tensor of the shape of its parameter. It is true where a weight is kept and false where it is pruned.
"""

import torch
from torch import Tensor

CHUNK = 65_536  # entries masked at a time on a CPU


def apply_mask(values: Tensor, mask: Tensor) -> None:
    """Set pruned entries to zero, in place.

    Kept entries stay bit-equal. A pruned entry becomes 0 or -0; a pruned NaN stays NaN.

    A bool mask takes one byte per weight. On a CPU, torch would first convert the whole mask to the type of
    ``values``. Multiplying by integers, in pieces that fit the cache, takes a quarter of that time. That is as fast
    as a float32 mask of four bytes per weight (docs/experiments/pruning-step-cost.md).

    Args:
        values: Tensor of any type and layout, also sparse.
        mask: Bool tensor of the same shape.
    """
    if values.device.type != "cpu" or values.is_sparse:
        values.mul_(mask)
        return
    lines = max(1, CHUNK * len(values) // values.numel())
    pieces = zip(torch.split(values, lines), torch.split(mask.view(torch.uint8), lines), strict=True)
    for part, keep in pieces:
        part.mul_(keep)


def pack_mask(mask: Tensor) -> Tensor:
    """Store a mask as bits: uint8 of shape ``(ceil(numel / 8),)`` on the CPU."""
    bits = mask.flatten().cpu().to(torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, -len(bits) % 8)).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack_mask(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Restore the mask that :func:`pack_mask` stored, bool of ``shape``."""
    spread = (bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return spread.flatten()[: torch.Size(shape).numel()].view(shape).bool()
