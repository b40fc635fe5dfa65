"""Record how much training has changed every line of the sliced matrices, without a second copy of the weights.

A slice along directions changes all columns of its matrix. How much each has changed follows from two thin factors.

Shapes:  R lines of a slice · L numbers of a line, with padding · n lines of a matrix along one axis · I columns
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slicefine_pl.slicing.distributed.shards import full_tensor, full_tensors
from slicefine_pl.slicing.handle import SliceHandle
from slicefine_pl.slicing.layout import lines_along
from slicefine_pl.slicing.schedule import Axis
from slicefine_pl.slicing.view import SliceView


class Visit(NamedTuple):
    """What one visit of a slice has changed.

    Attributes:
        lines: The lines that it changed, shape ``(m,)``.
        before: Their squared norms at its start, shape ``(m,)``, float64.
        change: The squared norm of the change of each, shape ``(m,)``, float64.
    """

    lines: Tensor
    before: Tensor
    change: Tensor


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

    def add(self, visit: Visit) -> None:
        """Add one visit."""
        known = self.squares[visit.lines]
        self.before[visit.lines] = torch.where(known.isnan(), visit.before, self.before[visit.lines])
        self.squares[visit.lines] = known.nan_to_num() + visit.change

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

    **Memory.** The values of all slices at their last move, and two numbers per line, in CPU memory. With directions
    three numbers per column.
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
        for view, visit in zip(slices, self._visits(slices), strict=True):
            self._updates[view.axis, view.name].add(visit)

    def after_move(self, slices: Sequence[SliceView]) -> None:
        """Keep what the new visits begin with."""
        for view in slices:
            self._views[view.name] = view
            self._updates.setdefault((view.axis, view.name), LineUpdates.unvisited(view))
        new = [
            each for each in slices if each.directions is None or not self._updates[each.axis, each.name].visited.any()
        ]
        self._start |= {view.name: start for view, start in zip(new, _starts(new), strict=True)}

    def lines(self) -> list[LineUpdates]:
        """What has changed so far: columns before rows, each in the order of the network.

        The present visit is included if it has changed anything. May be called after the handle was closed.
        """
        updates = copy.deepcopy(self._updates)
        views = list(self._views.values())
        for view, visit in zip(views, self._visits(views), strict=True):
            if visit.change.any():
                updates[view.axis, view.name].add(visit)
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

    def _visits(self, slices: Sequence[SliceView]) -> Iterator[Visit]:
        """The visits of slices so far."""
        along = any(view.directions is not None for view in slices)
        values = full_tensors([view.parameter for view in slices]) if along else _stored_values(slices)
        for view, trained in zip(slices, values, strict=True):
            start = self._start[view.name].double()
            if view.directions is None:
                yield Visit(view.indices.cpu(), start.square().sum(1), (trained.double() - start).square().sum(1))
            else:
                yield Visit(torch.arange(len(start)), start, _change_of_columns(trained, view.directions, view.scale))


def _starts(slices: Sequence[SliceView]) -> list[Tensor]:
    """The values of slices; for directions, the squared norms of all columns of their matrices, shape ``(I,)``."""
    if all(view.directions is None for view in slices):
        return _stored_values(slices)
    matrices = (view.layout.view(full_tensor(view.stored)) for view in slices)
    return [
        torch.linalg.vector_norm(lines_along(each, "column").flatten(1), dim=1, dtype=torch.float64).square().cpu()
        for each in matrices
    ]


def _change_of_columns(trained: Tensor, directions: Tensor, scale: float) -> Tensor:
    """The squared norms of the columns of ``scale · Aᵀ Pᵀ``, shape ``(I,)``, of A ``(R, L)`` and P ``(I, R)``."""
    trained, directions = scale * trained.detach().cpu().double(), directions.cpu().double()
    return (directions @ (trained @ trained.t()) * directions).sum(1).clamp_min(0)


def _stored_values(slices: Sequence[SliceView]) -> list[Tensor]:
    """The values of slices in the type of their weights, in CPU memory, each of shape ``(R, L)``."""
    values = full_tensors([view.lines() for view in slices])
    return [value.to("cpu", view.stored.dtype, copy=True) for view, value in zip(slices, values, strict=True)]
