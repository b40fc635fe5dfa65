"""Take a change out of a half-precision matrix to which it was added, bit for bit.

Rounding the sum loses digits of the matrix, so that subtracting the change does not always give the matrix back. What
it does not give back, a few percent of the entries at most where changes are small, is kept as a :class:`Remainder`.

Shapes:  O outputs · I inputs · K entries of a convolution's kernel · R directions
"""

from typing import NamedTuple

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
MARGIN = 1e-5  # error of a product in float32, relative to the lengths of its factors; depends on how it is computed


class Remainder(NamedTuple):
    """The entries of a matrix ``(O · K, I)`` that subtracting a change might not give back.

    Attributes:
        rows: Their rows, shape ``(n,)``, int64.
        columns: Their columns, shape ``(n,)``, int64.
        values: Their values, shape ``(n,)``, in the type of the matrix.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor

    @classmethod
    def of(cls, matrix: Tensor, merged: Tensor, change: Tensor, directions: Tensor) -> "Remainder":
        """Find the entries that another process, or another number of processes, might not give back.

        Args:
            matrix: Before the change was added, shape ``(O · K, I)``, bfloat16 or float16.
            merged: After it was added.
            change: Shape ``(R, O · K)``; ``changeᵀ directionsᵀ`` was added.
            directions: Shape ``(I, R)``.
        """
        change, directions = change.float(), directions.float()
        restored = merged.float() - change.t() @ directions.t()
        error = MARGIN * torch.outer(change.norm(dim=0), directions.norm(dim=1))
        rows, columns = may_differ(restored, error, matrix).nonzero(as_tuple=True)
        return cls(rows, columns, matrix[rows, columns])

    def within(self, shape: torch.Size, dim: int, offset: int) -> "Remainder":
        """The entries in a part of the matrix, with indices in that part.

        Args:
            shape: Shape of the part.
            dim: Dimension along which the matrix is split.
            offset: Index along ``dim`` at which the part begins.
        """
        along = (self.rows, self.columns)[dim]
        inside = (along >= offset) & (along < offset + shape[dim])
        rows, columns = self.rows[inside], self.columns[inside]
        return Remainder(*((rows - offset, columns) if dim == 0 else (rows, columns - offset)), self.values[inside])


def may_differ(restored: Tensor, error: Tensor, expected: Tensor) -> Tensor:
    """Where values that have an error, rounded to the type of the expected ones, may have other bits than those.

    0 and -0 have other bits, although they are equal.
    """
    bounds = [bound.to(expected.dtype) for bound in (restored - error, restored + error)]
    low, high = ((each != expected) | (each.signbit() != expected.signbit()) for each in bounds)
    return low | high


def subtract(merged: Tensor, product: Tensor, remainder: Remainder) -> None:
    """Take a change out again, in place.

    Args:
        merged: The matrix with the change, or a part of it.
        product: The change, of the same shape, float32.
        remainder: The entries that this would not give back, with indices in this part.
    """
    merged.copy_(merged.float() - product)
    device = merged.device
    merged[remainder.rows.to(device), remainder.columns.to(device)] = remainder.values.to(device)
