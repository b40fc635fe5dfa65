"""Record how much training has changed every line of the sliced matrices, without a second copy of the weights.

Shapes:  R lines of a slice · L numbers of a line, with padding · n lines of a matrix along one axis
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slicefine_pl.slicing.distributed.shards import full_tensors
from slicefine_pl.slicing.handle import SliceHandle
from slicefine_pl.slicing.schedule import Axis
from slicefine_pl.slicing.view import SliceView


@dataclass
class LineUpdates:
    """How much the columns, or the rows, of one matrix have changed.

    Attributes:
        name: Name of the matrix, as in :class:`SliceView`.
        axis: Columns or rows.
        length: Numbers in one line.
        squares: Squared change of each line, summed over its visits, shape ``(n,)``, float64; NaN if never visited.
        before: Squared norm of each line before its first visit, shape ``(n,)``, float64; NaN if never visited.
    """

    name: str
    axis: Axis
    length: int
    squares: Tensor
    before: Tensor

    @classmethod
    def unvisited(cls, view: SliceView) -> "LineUpdates":
        """The record of the matrix and axis of a slice, before any visit."""
        size, others, *kernel = view.shape if view.axis == "row" else (view.shape[1], view.shape[0], *view.shape[2:])
        empty = torch.full((size,), torch.nan, dtype=torch.float64)
        return cls(view.name, view.axis, others * math.prod(kernel), empty, empty.clone())

    def add(self, indices: Tensor, before: Tensor, after: Tensor) -> None:
        """Add one visit.

        Args:
            indices: The visited lines, shape ``(R,)``.
            before: Their values at the start of the visit, shape ``(R, L)``.
            after: Their values at its end, shape ``(R, L)``.
        """
        place, before = indices.cpu(), before.double()
        known = self.squares[place]
        self.before[place] = torch.where(known.isnan(), before.square().sum(1), self.before[place])
        self.squares[place] = known.nan_to_num() + (after.double() - before).square().sum(1)

    @property
    def visited(self) -> Tensor:
        """Which lines were visited, shape ``(n,)``, bool."""
        return ~self.squares.isnan()

    @property
    def rms_change(self) -> Tensor:
        """Root mean square of each line's change, shape ``(n,)``."""
        return (self.squares / self.length).sqrt()

    @property
    def rms_before(self) -> Tensor:
        """Root mean square of each line before its first visit, shape ``(n,)``."""
        return (self.before / self.length).sqrt()


class UpdateTracker:
    """A :class:`MoveListener` that adds up how much the open slices of a network change, from now on.

    For a line that was visited once, the result is the exact change of the stored weight. For a line with several
    visits it is the root of the sum of squared changes per visit: the length of the path, not the distance from the
    start.

    **Memory.** The values of all slices at their last move, and two numbers per line, in CPU memory.
    **Several processes.** Where weights are sharded, every method is a collective call.

    Args:
        handle: The open slices.
    """

    def __init__(self, handle: SliceHandle) -> None:
        self._views: dict[str, SliceView] = {}
        self._start: dict[str, Tensor] = {}
        self._updates: dict[tuple[Axis, str], LineUpdates] = {}
        self.after_move(list(handle))
        handle.add_move_listener(self)

    def before_move(self, slices: Sequence[SliceView]) -> None:
        """Add the visits that end."""
        for view, values in zip(slices, _stored_values(slices), strict=True):
            self._updates[view.axis, view.name].add(view.indices, self._start[view.name], values)

    def after_move(self, slices: Sequence[SliceView]) -> None:
        """Keep the values at the start of the new visits."""
        for view, values in zip(slices, _stored_values(slices), strict=True):
            self._views[view.name], self._start[view.name] = view, values
            self._updates.setdefault((view.axis, view.name), LineUpdates.unvisited(view))

    def lines(self) -> list[LineUpdates]:
        """What has changed so far: columns before rows, each in the order of the network.

        The present visit is included if it has changed anything. May be called after the handle was closed.
        """
        updates = copy.deepcopy(self._updates)
        views = list(self._views.values())
        for view, values in zip(views, _stored_values(views), strict=True):
            if not torch.equal(values, self._start[view.name]):
                updates[view.axis, view.name].add(view.indices, self._start[view.name], values)
        axes: tuple[Axis, ...] = ("column", "row")
        return [updates[axis, name] for axis in axes for name in self._views if (axis, name) in updates]

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as strings and tensors."""
        return {"start": dict(self._start), "lines": [vars(each) for each in copy.deepcopy(self._updates).values()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state. The slices must have the positions that they had then."""
        self._start = dict(state["start"])
        lines = [LineUpdates(**saved) for saved in copy.deepcopy(state["lines"])]
        self._updates = {(each.axis, each.name): each for each in lines}


def _stored_values(slices: Sequence[SliceView]) -> list[Tensor]:
    """The values of slices in the type of their weights, in CPU memory, each of shape ``(R, L)``."""
    values = full_tensors([view.lines() for view in slices])
    return [value.to("cpu", view.stored.dtype, copy=True) for view, value in zip(slices, values, strict=True)]
