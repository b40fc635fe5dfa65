"""The change of a matrix as a product of two thin factors.

What columns and rows change is a product without any decomposition: one factor contains the changes, the other one
picks the lines. A change along directions is stored as such factors. A product of a smaller rank comes from a singular
value decomposition of the thin factors.

Shapes:  O first dimension of the parameter · I second · k entries of the kernel · K = I · k · n lines · r rank
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slicefine_pl.slicing.saved_directions import SavedDirections
from slicefine_pl.slicing.saved_lines import AXES, SavedLines


@dataclass(frozen=True)
class LowRank:
    """A matrix ``left @ right``.

    Attributes:
        left: Shape ``(O, r)``, float64.
        right: Shape ``(r, K)``, float64.
    """

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """Rank of the product, as it is stored."""
        return self.left.shape[1]

    @property
    def energy(self) -> float:
        """Squared Frobenius norm of the matrix."""
        return float(((self.left.T @ self.left) * (self.right @ self.right.T)).sum().clamp(min=0))

    def truncated(self, rank: int) -> tuple["LowRank", float]:
        """The best approximation of a rank, and the energy that it lacks."""
        if rank >= self.rank:
            return self, 0.0
        outer, left = torch.linalg.qr(self.left)
        inner, right = torch.linalg.qr(self.right.T)
        u, values, v = torch.linalg.svd(left @ right.T, full_matrices=False)  # of at most (r, r)
        root = values[:rank].sqrt()
        best = LowRank(outer @ u[:, :rank] * root, root[:, None] * (v[:rank] @ inner.T))
        return best, float(values[rank:].square().sum())

    def rows(self, start: int, count: int) -> "LowRank":
        """Some rows of the matrix."""
        return LowRank(self.left[start : start + count], self.right)

    def padded(self, rank: int) -> "LowRank":
        """The same matrix with a larger rank."""
        more = max(rank - self.rank, 0)
        return LowRank(
            torch.nn.functional.pad(self.left, (0, more)), torch.nn.functional.pad(self.right, (0, 0, 0, more))
        )

    def __add__(self, other: "LowRank") -> "LowRank":
        """The sum; its rank is the sum of both ranks."""
        return LowRank(torch.cat([self.left, other.left], 1), torch.cat([self.right, other.right]))

    def at_most_full(self) -> "LowRank":
        """The same matrix with a rank of at most its own size; exactly, if it is the change of lines."""
        if self.rank <= min(self.left.shape[0], self.right.shape[1]):
            return self
        dense = self.left @ self.right  # of lines, no two terms of a sum differ from zero
        if dense.shape[0] <= dense.shape[1]:
            return LowRank(_unit_rows(torch.arange(dense.shape[0]), dense.shape[0]), dense)
        return LowRank(dense, _unit_rows(torch.arange(dense.shape[1]), dense.shape[1]))


@dataclass(frozen=True)
class LineChanges:
    """The change of a parameter: values at some indices of its first dimension and at some of its second.

    Attributes:
        first: Indices along the first dimension, shape ``(n,)``.
        first_values: Their change, shape ``(n, I, ...)``, float64.
        second: Indices along the second dimension, shape ``(m,)``.
        second_values: Their change, shape ``(O, m, ...)``, float64. Entries of both kinds are only here.
    """

    first: Tensor
    first_values: Tensor
    second: Tensor
    second_values: Tensor

    @classmethod
    def of(cls, stored: Tensor, lines: Sequence[SavedLines]) -> "LineChanges":
        """The change of a parameter by all of its lines.

        Args:
            stored: The parameter in the base, shape ``(O, I, ...)``.
            lines: The lines, of the whole parameter or of ranges of its first dimension.
        """
        size, others, *kernel = stored.shape
        by_dim = [_union(each for each in lines if _dim(each) == dim) for dim in (0, 1)]
        first_values = torch.zeros(len(by_dim[0]), others, *kernel, dtype=torch.float64)
        second_values = torch.zeros(size, len(by_dim[1]), *kernel, dtype=torch.float64)
        for each in lines:
            base = each.read(stored.cpu())
            change = (each.values.cpu().double() - base.double()).permute(_inverse(each.order))
            start, count = each.rows or (0, size)
            if _dim(each) == 1:
                second_values[start : start + count, torch.searchsorted(by_dim[1], each.index)] = change
                continue
            for other in lines:
                if _dim(other) == 1 and other.rows == each.rows:
                    change[:, other.index] = 0
            first_values[torch.searchsorted(by_dim[0], each.index + start)] = change
        return cls(by_dim[0], first_values, by_dim[1], second_values)

    def block(self, start: int, count: int) -> LowRank:
        """The exact change of a range of the first dimension, as a matrix ``(count, K)``."""
        others, kernel = self.first_values.shape[1], self.first_values.shape[2:].numel()
        columns = (self.second[:, None] * kernel + torch.arange(kernel)).flatten()
        inside = (self.first >= start) & (self.first < start + count)
        rows = self.first[inside] - start
        left = [self.second_values[start : start + count].flatten(1), _unit_rows(rows, count).T]
        right = [_unit_rows(columns, others * kernel), self.first_values[inside].flatten(1)]
        return LowRank(torch.cat(left, 1), torch.cat(right))


def change_along(stored: Tensor, directions: SavedDirections) -> LowRank:
    """The change of a parameter ``(O, I, ...)`` or ``(I, O)`` along directions, of which it may be some rows.

    In a convolution each direction counts once for each entry of the kernel.
    """
    left, right = directions.change.double(), directions.directions.double().T
    if directions.order == (1, 0):
        left, right = right.T, left.T
    elif (kernel := stored.shape[2:].numel()) > 1:
        left = left.view(-1, kernel * left.shape[1])
        of_entries = right.new_zeros(kernel, *right.shape, kernel)
        of_entries[range(kernel), :, :, range(kernel)] = right
        right = of_entries.flatten(2).flatten(0, 1)
    start, count = directions.rows or (0, len(stored))
    before_and_after = (0, 0, start, len(stored) - start - count)
    return LowRank(torch.nn.functional.pad(left, before_and_after), right)


def _dim(lines: SavedLines) -> int:
    """The dimension of the parameter along which lines are indexed."""
    return lines.order[AXES[lines.axis]]


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=lambda dim: order[dim])


def _union(lines: Iterable[SavedLines]) -> Tensor:
    """All indices along a dimension of the parameter, ascending."""
    found = set[int]()
    for each in lines:
        start = each.rows[0] if each.rows and _dim(each) == 0 else 0
        found.update((each.index + start).tolist())
    return torch.tensor(sorted(found), dtype=torch.int64)


def _unit_rows(index: Tensor, size: int) -> Tensor:
    """Rows that pick entries, shape ``(n, size)``."""
    return torch.zeros(len(index), size, dtype=torch.float64).scatter_(1, index[:, None], 1)
