"""Which weights of a matrix stay, given a score for each: single weights, n of m, blocks, rows, columns.

Pure tensors; knows neither layers nor steps.  Counts are exact: ties go by index, so that all processes agree.

Shapes:  O outputs · I inputs · a matrix is (O, I) or (O, I, ...), where n:m groups lie along the inputs
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
    """How pruned weights lie in a matrix.

    A matrix is seen as *units* that stay or go together, each with a score.
    """

    @abstractmethod
    def obstacle(self, shape: tuple[int, ...]) -> str | None:
        """Why a matrix of this shape cannot have the pattern; ``None`` if it can."""

    @abstractmethod
    def units(self, scores: Tensor) -> Tensor:
        """Score of every unit, in the order of the units, shape ``(U,)``; from scores of weights, all at least 0."""

    @abstractmethod
    def spread(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The mask, bool of ``shape``, in which the units of ``kept``, shape ``(U,)``, stay."""

    def final(self) -> float | None:
        """The only sparsity that the pattern can end with; ``None`` if it takes any."""
        return None

    def holds(self, mask: Tensor) -> bool:
        """Whether a mask, bool of shape ``(O, I, ...)``, has the pattern in full."""
        return torch.equal(self.spread(self.units(mask.float()) > 0, tuple(mask.shape)), mask)


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Single weights."""

    def obstacle(self, shape: tuple[int, ...]) -> str | None:
        return None

    def units(self, scores: Tensor) -> Tensor:
        return scores.flatten()

    def spread(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        return kept.view(shape)

    def __str__(self) -> str:
        return "unstructured"


@dataclass(frozen=True)
class NofM(Pattern):
    """At most ``n`` of each ``m`` weights that follow each other along the inputs: ``"2:4"`` and its like.

    On the way to its sparsity, weights that the final pattern keeps come last: so it ends exactly in the pattern.
    """

    n: int
    m: int

    def obstacle(self, shape: tuple[int, ...]) -> str | None:
        return None if shape[1] % self.m == 0 else f"its {shape[1]} inputs do not divide by {self.m}"

    def units(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(self.best(scores), torch.inf).flatten()

    def spread(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        return kept.view(shape)

    def final(self) -> float:
        return 1 - self.n / self.m

    def best(self, scores: Tensor) -> Tensor:
        """The n weights of highest score in each group, as a mask of the shape of ``scores``."""
        groups = scores.movedim(1, -1).unfold(-1, self.m, self.m)
        order = groups.argsort(dim=-1, descending=True, stable=True)
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., : self.n], True)
        return kept.flatten(-2).movedim(-1, 1)

    def holds(self, mask: Tensor) -> bool:
        groups = mask.movedim(1, -1).unfold(-1, self.m, self.m)
        return bool((groups.sum(-1) <= self.n).all())

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class Blocks(Pattern):
    """Blocks of ``rows`` x ``columns`` weights; of a convolution, channels with all places of the kernel.

    A size of ``None`` spans the matrix: ``Blocks(1, None)`` are rows, ``Blocks(None, 1)`` columns.
    """

    rows: int | None
    columns: int | None

    def obstacle(self, shape: tuple[int, ...]) -> str | None:
        for size, edge, name in ((shape[0], self.rows, "outputs"), (shape[1], self.columns, "inputs")):
            if edge is not None and size % edge:
                return f"its {size} {name} do not divide by {edge}"
        return None

    def units(self, scores: Tensor) -> Tensor:
        rows, columns = self._edges(tuple(scores.shape))
        tiles = scores.flatten(2).sum(-1) if scores.ndim > 2 else scores
        return tiles.unfold(0, rows, rows).unfold(1, columns, columns).sum((2, 3)).flatten()

    def spread(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        rows, columns = self._edges(shape)
        mask = kept.view(shape[0] // rows, -1).repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return mask.view(*mask.shape, *[1] * (len(shape) - 2)).expand(shape).contiguous()

    def _edges(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return self.rows or shape[0], self.columns or shape[1]

    def __str__(self) -> str:
        named = {(1, None): "row", (None, 1): "column"}
        return named.get((self.rows, self.columns), f"block({self.rows},{self.columns})")


def parse_pattern(text: str) -> Pattern:
    """The pattern of a name such as ``"unstructured"``, ``"2:4"``, ``"block(16,16)"``, ``"row"`` or ``"column"``.

    Raises:
        ValueError: The name is unknown, or its numbers are impossible.
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
    """The ``count`` units of highest score, as a mask; of equal ones the first.

    Args:
        scores: Shape ``(U,)``.
        count: Units that stay, in [0, U].

    Raises:
        ValueError: A score is not a number.
    """
    if scores.isnan().any():
        raise ValueError(
            f"{int(scores.isnan().sum())} of {len(scores)} scores are not a number; lower the learning rate."
        )
    if count == len(scores):
        return torch.ones_like(scores, dtype=torch.bool)
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    least = scores.kthvalue(len(scores) - count + 1).values  # the smallest score that stays
    stay = scores >= least
    if stay.sum() == count:
        return stay
    above, level = scores > least, scores == least
    return above | (level & (level.cumsum(0) <= count - above.sum()))


def kept_units(units: int, sparsity: float) -> int:
    """How many of ``units`` stay at a sparsity: the nearest whole number, and at least one."""
    return max(1, units - math.floor(units * sparsity + 0.5))
