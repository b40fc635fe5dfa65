"""Where candidate slices lie: drawn by chance, read, and stepped on in the stored weights of a plain network.

Answers one question: which numbers of a network does a slice hold, while no slice is open?

Shapes:  R lines of a slice
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from slicefine_pl.slicing.distributed.shards import lines_along
from slicefine_pl.slicing.layers.registry import SliceableMatrix
from slicefine_pl.slicing.schedule import Axis, slice_indices, visiting_order


@dataclass(frozen=True)
class SliceLocation:
    """Lines of a matrix.

    Attributes:
        matrix: The matrix.
        line: Columns or rows.
        lines: Which, R of them.
    """

    matrix: SliceableMatrix
    line: Axis
    lines: tuple[int, ...]

    def pick(self, like: Tensor) -> Tensor:
        """These lines of a tensor that has the shape of the stored parameter, shape ``(R, ...)``."""
        return self._view(like).index_select(0, torch.tensor(self.lines, device=like.device))

    def step(self, gradient: Tensor, lr: float) -> None:
        """Subtract ``lr`` times the gradient, which has the shape of the stored parameter, on these lines."""
        stored = self.matrix.parameter.data
        index = torch.tensor(self.lines, device=stored.device)
        self._view(stored).index_add_(0, index, self.pick(gradient), alpha=-lr)

    def _view(self, stored: Tensor) -> Tensor:
        return lines_along(self.matrix.layout.view(stored), self.line)


def candidate_slices(matrices: Sequence[SliceableMatrix], rank: int, count: int, seed: int) -> list[SliceLocation]:
    """Draw candidates by chance: matrix, kind of line, and place; no matrix again before all had one.

    Args:
        matrices: Where slices may lie; see :func:`slicefine_pl.analysis.targets.target_matrices`.
        rank: Lines of each (R), drawn as ``order="random"`` takes them.
        count: How many.
        seed: Of the choice.

    Raises:
        ValueError: Nothing is to be drawn, or a matrix is narrower than ``rank``.
    """
    if not matrices or count < 1:
        raise ValueError(
            f"count={count} slices of {len(matrices)} matrices cannot be drawn; give at least one of each."
        )
    generator = random.Random(seed)
    order: list[SliceableMatrix] = []
    while len(order) < count:
        order += generator.sample(list(matrices), len(matrices))
    places = []
    for number, matrix in enumerate(order[:count]):
        line: Axis = generator.choice(get_args(Axis))
        size = matrix.shape[0 if line == "row" else 1]
        lines = slice_indices(0, rank, visiting_order(size, "random", f"{seed}/{number}"))
        places.append(SliceLocation(matrix, line, tuple(sorted(lines))))
    return places
