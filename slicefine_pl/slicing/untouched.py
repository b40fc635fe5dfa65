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

Covered = dict[Axis, Tensor]  # which lines, by axis


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
        self._before = self._bits, self.covered  # without the last position

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
        self._before = self._bits, _copied(self.covered)
        self._bits = (self._bits - sum_of_bits(part, {1 if axis == "column" else 0: new})) % MODULUS
        self.covered[axis][new] = True

    def trained(self, matrix: Tensor) -> Covered | None:
        """The lines that contain all changes since the beginning; ``None`` if other entries have changed.

        Lines at which a slice has just arrived are not among them if they have not changed since, unless there are no
        others.

        Args:
            matrix: The whole matrix, shape ``(O, I, ...)``.

        Returns:
            For each axis, which lines, shape ``(I,)`` or ``(O,)``, bool.
        """
        states = self._before, (self._bits, self.covered)
        return next((each for bits, each in states if _any(each) and _sum_outside(matrix, each) == bits), None)

    def state_dict(self) -> dict[str, Any]:
        """The sum, and which lines are left out of it; also without the last position."""
        bits, covered = self._before
        return {
            "base": None if self.base is None else astuple(self.base),
            "bits": self._bits,
            "covered": _copied(self.covered),
            "before": {"bits": bits, "covered": _copied(covered)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.base = None if state["base"] is None else Fingerprint(*state["base"])
        self._bits = state["bits"]
        self.covered = _copied(state["covered"])
        self._before = state["before"]["bits"], _copied(state["before"]["covered"])


def _copied(covered: Covered) -> Covered:
    return {axis: lines.clone() for axis, lines in covered.items()}


def _any(covered: Covered) -> bool:
    return any(bool(lines.any()) for lines in covered.values())


def _sum_outside(matrix: Tensor, covered: Covered) -> int:
    """The sum over the bits of the entries outside of lines."""
    rest = matrix.clone()
    for axis, lines in covered.items():
        lines_along(rest, axis)[lines.to(rest.device)] = 0
    return sum_of_bits(rest)


def _along(covered: Tensor, lines: Tensor) -> Tensor:
    """A mask over the second dimension of lines ``(n, m, ...)``, in a shape that broadcasts."""
    return covered.to(lines.device).view(1, -1, *[1] * (lines.dim() - 2))
