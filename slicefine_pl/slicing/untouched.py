"""The entries of a matrix at which no slice has been, and a check that nothing else changed them."""

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor

from slicefine_pl.slicing.distributed.shards import LocalShard
from slicefine_pl.slicing.fingerprint import MODULUS, Fingerprint, sum_of_bits
from slicefine_pl.slicing.layout import lines_along
from slicefine_pl.slicing.schedule import Axis


class Untouched:
    """The entries outside all lines at which a slice has been.

    The matrix as it was before is not needed: a line is taken out of the sum over all bits when a slice arrives there.

    Args:
        matrix: The matrix before training, shape ``(O, I, ...)``.
        axes: The axes of the slice.

    Attributes:
        base: Fingerprint of the matrix before training; ``None`` if it had no values yet.
        covered: For each axis, at which lines a slice has been, shape ``(I,)`` or ``(O,)``, bool.
    """

    def __init__(self, matrix: Tensor, axes: Sequence[Axis]) -> None:
        self._shape = tuple(matrix.shape)
        self.base = None if matrix.is_meta else Fingerprint.of(matrix)
        self._bits = 0 if self.base is None else self.base.bits
        sizes = {"row": matrix.shape[0], "column": matrix.shape[1]}
        self.covered = {axis: torch.zeros(sizes[axis], dtype=torch.bool) for axis in axes}

    def leave_out(self, axis: Axis, indices: Sequence[int], shard: LocalShard) -> None:
        """Leave out lines at which a slice arrives, before they are trained. Where weights are sharded: a collective.

        Args:
            axis: Columns or rows.
            indices: Which ones.
            shard: The part of the matrix that this process stores.
        """
        new = torch.tensor([index for index in indices if not self.covered[axis][index]], dtype=torch.int64)
        if not len(new) or shard.values.is_meta:
            return
        lines = shard.gather(axis, new, self._shape)  # (n, ...)
        other: Axis = "row" if axis == "column" else "column"
        if other in self.covered:  # entries of both axes were left out before
            lines = lines.masked_fill(_along(self.covered[other], lines), 0)
        part = lines_along(lines, axis)
        self._bits = (self._bits - sum_of_bits(part, {1 if axis == "column" else 0: new})) % MODULUS
        self.covered[axis][new] = True

    def is_unchanged(self, matrix: Tensor) -> bool:
        """Whether the entries have the values of the beginning.

        Args:
            matrix: The whole matrix, shape ``(O, I, ...)``.
        """
        rest = matrix.clone()
        for axis, covered in self.covered.items():
            lines_along(rest, axis)[covered.to(rest.device)] = 0
        return sum_of_bits(rest) == self._bits

    def state_dict(self) -> dict[str, Any]:
        """The sum, and which lines are left out of it."""
        base = None if self.base is None else astuple(self.base)
        return {
            "base": base,
            "bits": self._bits,
            "covered": {axis: lines.clone() for axis, lines in self.covered.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.base = None if state["base"] is None else Fingerprint(*state["base"])
        self._bits = state["bits"]
        self.covered = {axis: lines.clone() for axis, lines in state["covered"].items()}


def _along(covered: Tensor, lines: Tensor) -> Tensor:
    """A mask over the second dimension of lines ``(n, m, ...)``, in a shape that broadcasts."""
    return covered.to(lines.device).view(1, -1, *[1] * (lines.dim() - 2))
