"""Patterns of pruned weights: unstructured, n:m, blocks, rows and columns.

A pattern turns a score per weight into a mask. It groups the weights of a matrix into units that are kept or pruned
together, and keeps the units of highest score. Counts are exact: of equal scores the first one is kept, so that all
processes compute the same mask.

Shapes:  O outputs · I inputs · U units · a matrix has the shape (O, I, ...); n:m groups lie along the inputs
Source:  Frantar et al., arXiv:2309.08520, Section 3.2 and its code, for gradual n:m.
"""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

KNOWN = "'unstructured', 'row', 'column', 'block(r,c)' or 'n:m', such as '2:4'"


class Pattern(ABC):
    """Arrangement of the pruned weights in a matrix.

    A *unit* is a group of weights that are kept or pruned together: one weight, a block, a row or a column.
    """

    @abstractmethod
    def obstacle(self, shape: tuple[int, ...]) -> str | None:
        """Return why a matrix of this shape cannot have the pattern; ``None`` if it can."""

    @abstractmethod
    def units(self, scores: Tensor) -> Tensor:
        """Return the score of every unit.

        Args:
            scores: Scores of the weights, not negative, shape ``(O, I, ...)``.

        Returns:
            Shape ``(U,)``.
        """

    @abstractmethod
    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the mask that keeps some units.

        Args:
            kept: Whether each unit is kept, bool of shape ``(U,)``.
            shape: Shape of the matrix, ``(O, I, ...)``.

        Returns:
            Bool of ``shape``, true where a weight is kept.
        """

    def final_sparsity(self) -> float | None:
        """Return the sparsity that a complete pattern has; ``None`` if it can have any."""
        return None

    def matches(self, mask: Tensor) -> bool:
        """Whether a mask, bool of shape ``(O, I, ...)``, has the complete pattern."""
        return torch.equal(self.expand(self.units(mask.float()) > 0, tuple(mask.shape)), mask)


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Single weights."""

    def obstacle(self, shape: tuple[int, ...]) -> str | None:
        return None

    def units(self, scores: Tensor) -> Tensor:
        return scores.flatten()

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        return kept.view(shape)

    def __str__(self) -> str:
        return "unstructured"


@dataclass(frozen=True)
class NofM(Pattern):
    """Keep at most ``n`` of every ``m`` consecutive weights along the inputs, as in ``"2:4"``.

    The ``n`` best weights of every group get the highest score. So sparsity can rise gradually, weight by weight, and
    ends exactly in the pattern.
    """

    n: int
    m: int

    def obstacle(self, shape: tuple[int, ...]) -> str | None:
        return None if shape[1] % self.m == 0 else f"its {shape[1]} inputs are not divisible by {self.m}"

    def units(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(self.best(scores), torch.inf).flatten()

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        return kept.view(shape)

    def final_sparsity(self) -> float:
        return 1 - self.n / self.m

    def best(self, scores: Tensor) -> Tensor:
        """Return a mask, of the shape of ``scores``, that keeps the n weights of highest score in each group."""
        groups = scores.movedim(1, -1).unfold(-1, self.m, self.m)
        order = groups.argsort(dim=-1, descending=True, stable=True)
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., : self.n], True)
        return kept.flatten(-2).movedim(-1, 1)

    def matches(self, mask: Tensor) -> bool:
        groups = mask.movedim(1, -1).unfold(-1, self.m, self.m)
        return bool((groups.sum(-1) <= self.n).all())

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class Blocks(Pattern):
    """Keep or prune blocks of ``rows`` x ``columns`` weights.

    In a convolution, rows are output channels and columns are input channels, each with the whole kernel. A size of
    ``None`` spans the matrix: ``Blocks(1, None)`` are rows, ``Blocks(None, 1)`` are columns.
    """

    rows: int | None
    columns: int | None

    def obstacle(self, shape: tuple[int, ...]) -> str | None:
        for size, edge, name in ((shape[0], self.rows, "outputs"), (shape[1], self.columns, "inputs")):
            if edge is not None and size % edge:
                return f"its {size} {name} are not divisible by {edge}"
        return None

    def units(self, scores: Tensor) -> Tensor:
        rows, columns = self._edges(tuple(scores.shape))
        blocks = scores.flatten(2).sum(-1) if scores.ndim > 2 else scores
        return blocks.unfold(0, rows, rows).unfold(1, columns, columns).sum((2, 3)).flatten()

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        rows, columns = self._edges(shape)
        mask = kept.view(shape[0] // rows, -1).repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return mask.view(*mask.shape, *[1] * (len(shape) - 2)).expand(shape).contiguous()

    def _edges(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return self.rows or shape[0], self.columns or shape[1]

    def __str__(self) -> str:
        named = {(1, None): "row", (None, 1): "column"}
        return named.get((self.rows, self.columns), f"block({self.rows},{self.columns})")


def parse_pattern(text: str) -> Pattern:
    """Parse a pattern such as ``"unstructured"``, ``"2:4"``, ``"block(16,16)"``, ``"row"`` or ``"column"``.

    Raises:
        ValueError: The name is unknown, or its numbers are out of range.
    """
    named = {"unstructured": Unstructured(), "row": Blocks(1, None), "column": Blocks(None, 1)}
    if text in named:
        return named[text]
    if found := re.fullmatch(r"(\d+):(\d+)", text):
        n, m = map(int, found.groups())
        if not 0 < n < m:
            raise ValueError(f"pattern={text!r} keeps {n} of {m} weights; choose n:m with 0 < n < m, such as '2:4'.")
        return NofM(n, m)
    if found := re.fullmatch(r"block\((\d+),\s*(\d+)\)", text):
        rows, columns = map(int, found.groups())
        if not (rows and columns):
            raise ValueError(f"pattern={text!r} has an empty block; choose edges of at least 1.")
        return Blocks(rows, columns)
    raise ValueError(f"pattern={text!r} is unknown; choose {KNOWN}.")


def keep_best(scores: Tensor, count: int) -> Tensor:
    """Select the ``count`` units of highest score; of equal scores the first.

    Args:
        scores: Shape ``(U,)``.
        count: Units to keep, in [0, U].

    Returns:
        Bool of shape ``(U,)``, true for kept units.

    Raises:
        ValueError: A score is NaN.
    """
    if scores.isnan().any():
        raise ValueError(f"{int(scores.isnan().sum())} of {len(scores)} scores are NaN; lower the learning rate.")
    if count == len(scores):
        return torch.ones_like(scores, dtype=torch.bool)
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(len(scores) - count + 1).values  # the smallest score that is kept
    kept = scores >= threshold
    if kept.sum() == count:
        return kept
    above, equal = scores > threshold, scores == threshold
    return above | (equal & (equal.cumsum(0) <= count - above.sum()))


def kept_units(units: int, sparsity: float) -> int:
    """Return how many of ``units`` are kept at a sparsity in [0, 1): the nearest integer, but at least 1."""
    return max(1, units - math.floor(units * sparsity + 0.5))
