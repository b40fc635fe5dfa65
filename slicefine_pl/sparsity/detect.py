"""Which pattern do the zeros of a matrix have?

The reverse of :mod:`slicefine_pl.sparsity.patterns`, which makes them: given where a matrix is not zero, name the
tightest pattern that holds.  Pure tensors.

Shapes:  O outputs · I inputs · a mask is (O, I) or (O, I, ...), true where a weight is not zero
Source:  ours.
"""

import math

import torch
from torch import Tensor

from slicefine_pl.sparsity.patterns import NofM

BY_CHANCE = 0.01  # share of zeros below which a matrix counts as dense: a row of padding, weights that just are zero
FILLED = 0.75  # share of the weights an n:m pattern allows that must be there: else it holds by chance, and says little
GROUPS = (2, 4, 8, 16, 32)


def detect_pattern(mask: Tensor) -> str:
    """Name the pattern of a mask, bool of shape ``(O, I, ...)``.

    Returns:
        ``"dense"`` if fewer than 1 % are zero; else the first that holds of ``"row"``, ``"column"``,
        ``"row and column"``, ``"block(r,c)"`` with the largest blocks, and ``"n:m"`` with the fewest weights in a group
        of 2, 4, ... 32 inputs, provided that three quarters of those it allows are there; else ``"unstructured"``.
    """
    kept = int(mask.count_nonzero())
    if kept > (1 - BY_CHANCE) * mask.numel():
        return "dense"
    return _lines(mask) or _blocks(mask) or _groups(mask, kept) or "unstructured"


def is_two_four(mask: Tensor) -> bool:
    """Whether no four inputs in a row have more than two weights: what sparse tensor cores can use."""
    return mask.shape[1] % 4 == 0 and NofM(2, 4).holds(mask)


def _lines(mask: Tensor) -> str | None:
    """Whether all zeros lie in whole rows, whole columns, or both."""
    rows, columns = mask.flatten(1).any(1), mask.transpose(0, 1).flatten(1).any(1)
    if not torch.equal((rows[:, None] & columns).view(*mask.shape[:2], *[1] * (mask.ndim - 2)).expand_as(mask), mask):
        return None
    if bool(columns.all()) or not bool(rows.any()):
        return "row"
    return "column" if bool(rows.all()) else "row and column"


def _blocks(mask: Tensor) -> str | None:
    """The largest blocks: their edges divide every place where neighbouring rows, or columns, differ."""
    if mask.ndim > 2 and not torch.equal(mask.flatten(2).any(-1), mask.flatten(2).all(-1)):
        return None
    rows, columns = (_edge(lines.flatten(1)) for lines in (mask, mask.transpose(0, 1)))
    return f"block({rows},{columns})" if rows * columns > 1 else None


def _edge(lines: Tensor) -> int:
    changes = (lines[1:] != lines[:-1]).any(1).nonzero().flatten() + 1
    return math.gcd(len(lines), *changes.tolist())


def _groups(mask: Tensor, kept: int) -> str | None:
    found = []
    for size in GROUPS:
        if mask.shape[1] % size == 0:
            most = int(mask.movedim(1, -1).unfold(-1, size, size).sum(-1).max())
            if most < size and kept >= FILLED * most / size * mask.numel():
                found.append((most / size, size, f"{most}:{size}"))
    return min(found)[-1] if found else None
