"""Locations of candidate slices in the stored weights of a network, without opening them.

Shapes:  R rows or columns of a slice
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from slicefine_pl.slicing.layers.registry import SliceableMatrix
from slicefine_pl.slicing.layout import lines_along
from slicefine_pl.slicing.schedule import Axis, slice_indices, visiting_order


@dataclass(frozen=True)
class SliceLocation:
    """Rows or columns of a matrix.

    Attributes:
        matrix: The matrix.
        axis: ``"row"`` or ``"column"``.
        indices: Indices of the rows or columns, R of them.
    """

    matrix: SliceableMatrix
    axis: Axis
    indices: tuple[int, ...]

    def pick(self, like: Tensor) -> Tensor:
        """Return these rows or columns of a tensor, shape ``(R, ...)``.

        Args:
            like: Tensor of the shape of the stored parameter.
        """
        return self._view(like).index_select(0, torch.tensor(self.indices, device=like.device))

    def step(self, gradient: Tensor, lr: float) -> None:
        """Subtract ``lr`` times the gradient from these rows or columns of the parameter, in place.

        Args:
            gradient: Gradient of the whole parameter.
            lr: Learning rate.
        """
        stored = self.matrix.parameter.data
        index = torch.tensor(self.indices, device=stored.device)
        self._view(stored).index_add_(0, index, self.pick(gradient), alpha=-lr)

    def _view(self, stored: Tensor) -> Tensor:
        return lines_along(self.matrix.layout.view(stored), self.axis)


def candidate_slices(matrices: Sequence[SliceableMatrix], rank: int, count: int, seed: int) -> list[SliceLocation]:
    """Draw random slices, with a random axis each; every matrix gets one before a matrix gets a second.

    Args:
        matrices: Matrices to draw from; see :func:`slicefine_pl.analysis.targets.target_matrices`.
        rank: Rows or columns per slice (R), chosen as by ``order="random"``.
        count: Number of slices.
        seed: Seed of the draw.

    Raises:
        ValueError: ``count`` is below 1, there are no matrices, or a matrix has fewer rows or columns than ``rank``.
    """
    if not matrices or count < 1:
        raise ValueError(
            f"count={count} slices of {len(matrices)} matrices cannot be drawn; give at least one of each."
        )
    generator = random.Random(seed)
    order: list[SliceableMatrix] = []
    while len(order) < count:
        order += generator.sample(list(matrices), len(matrices))
    locations = []
    for number, matrix in enumerate(order[:count]):
        axis: Axis = generator.choice(get_args(Axis))
        size = matrix.shape[0 if axis == "row" else 1]
        indices = slice_indices(0, rank, visiting_order(size, "random", f"{seed}/{number}"))
        locations.append(SliceLocation(matrix, axis, tuple(sorted(indices))))
    return locations
