"""Detect which pattern the zeros of a matrix have.

This is the reverse of :mod:`slicefine_pl.sparsity.patterns`: given the positions of the non-zero weights, it names the
most specific pattern that they satisfy.

Shapes:  O outputs · I inputs · a mask has the shape (O, I, ...) and is true where a weight is not zero
Source:  ours.
"""

import math

import torch
from torch import Tensor

from slicefine_pl.sparsity.patterns import NofM

DENSE_BELOW = 0.01  # share of zeros below which a matrix counts as dense: a padding row, or a few zeros by chance
LEAST_FILLED = 0.75  # share of the weights allowed by n:m that must be non-zero; else the pattern holds by chance
GROUP_SIZES = (2, 4, 8, 16, 32)  # values of m


def detect_pattern(mask: Tensor) -> str:
    """Name the pattern of a mask, bool of shape ``(O, I, ...)``.

    Checks the patterns in this order and returns the first one that holds:

    1. ``"dense"``: fewer than 1 % of the weights are zero.
    2. ``"row"``, ``"column"`` or ``"row and column"``: all zeros lie in zero rows, zero columns, or both.
    3. ``"block(r,c)"``, with the largest possible blocks.
    4. ``"n:m"`` with the smallest n/m, for m of 2, 4, 8, 16 or 32. At least three quarters of the weights that n:m
       allows must be non-zero.
    5. ``"unstructured"``.
    """
    kept = int(mask.count_nonzero())
    if kept > (1 - DENSE_BELOW) * mask.numel():
        return "dense"
    return _lines(mask) or _blocks(mask) or _groups(mask, kept) or "unstructured"


def is_two_four(mask: Tensor) -> bool:
    """Whether every group of four consecutive inputs has at most two weights, as sparse tensor cores need it."""
    return mask.shape[1] % 4 == 0 and NofM(2, 4).matches(mask)


def _lines(mask: Tensor) -> str | None:
    """Return the pattern if all zeros lie in zero rows, zero columns, or both; else ``None``."""
    rows, columns = mask.flatten(1).any(1), mask.transpose(0, 1).flatten(1).any(1)
    if not torch.equal((rows[:, None] & columns).view(*mask.shape[:2], *[1] * (mask.ndim - 2)).expand_as(mask), mask):
        return None
    if bool(columns.all()) or not bool(rows.any()):
        return "row"
    return "column" if bool(rows.all()) else "row and column"


def _blocks(mask: Tensor) -> str | None:
    """Return the largest blocks: neighboring rows, or columns, differ only at block edges."""
    if mask.ndim > 2 and not torch.equal(mask.flatten(2).any(-1), mask.flatten(2).all(-1)):
        return None
    rows, columns = (_edge(lines.flatten(1)) for lines in (mask, mask.transpose(0, 1)))
    return f"block({rows},{columns})" if rows * columns > 1 else None


def _edge(lines: Tensor) -> int:
    changes = (lines[1:] != lines[:-1]).any(1).nonzero().flatten() + 1
    return math.gcd(len(lines), *changes.tolist())


def _groups(mask: Tensor, kept: int) -> str | None:
    found = []
    for size in GROUP_SIZES:
        if mask.shape[1] % size == 0:
            most = int(mask.movedim(1, -1).unfold(-1, size, size).sum(-1).max())
            if most < size and kept >= LEAST_FILLED * most / size * mask.numel():
                found.append((most / size, size, f"{most}:{size}"))
    return min(found)[-1] if found else None
