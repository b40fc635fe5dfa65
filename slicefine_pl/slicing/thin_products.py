"""Products of a matrix and thin factors, in float64, a block of rows at a time.

Shapes:  O outputs · I inputs · n directions
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 1 << 22  # entries of a matrix that are in float64 at a time


def along(matrix: Tensor, directions: Tensor) -> Tensor:
    """The components of a matrix ``(O, I)`` along directions ``(I, n)``, shape ``(O, n)``, float64, in CPU memory."""
    directions = in_double(directions, matrix)
    return torch.cat([(in_double(matrix[rows], matrix) @ directions).cpu() for rows in row_blocks(matrix)])


def add_product(matrix: Tensor, change: Tensor, directions: Tensor, factor: int = 1) -> Tensor:
    """``matrix + factor · change directionsᵀ`` in float64, rounded to the type of the matrix.

    Args:
        matrix: Shape ``(O, I)``; it does not change.
        change: Shape ``(O, n)``.
        directions: Shape ``(I, n)``.
        factor: 1 or -1.
    """
    change, directions = in_double(change, matrix), in_double(directions, matrix)
    sums = torch.empty_like(matrix, memory_format=torch.contiguous_format)
    for rows in row_blocks(matrix):
        product = torch.addmm(in_double(matrix[rows], matrix), change[rows], directions.t(), alpha=factor)
        sums[rows].copy_(product)
    return sums


def in_double(values: Tensor, like: Tensor) -> Tensor:
    """Values in float64, on the device of ``like``; on the CPU if the device has no float64."""
    return values.detach().to("cpu" if like.device.type == "mps" else like.device, torch.float64)


def row_blocks(matrix: Tensor) -> Iterator[slice]:
    """Ranges of rows of a matrix that are in float64 at a time."""
    size = max(1, BLOCK // max(1, matrix.shape[1]))
    yield from (slice(start, start + size) for start in range(0, len(matrix), size))
