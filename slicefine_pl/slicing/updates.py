"""How much has every line of the sliced matrices changed?  Told visit by visit, without a second copy of the weights.

Shapes:  R rank of the slice · L numbers of a line of ``live`` · size: lines of the axis
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
    """What the columns, or the rows, of one matrix have learned.

    Attributes:
        name: Of the matrix, as in :class:`SliceView`.
        axis: Columns or rows.
        length: Numbers in a line.
        squares: Sum over its visits of each line's squared change, shape ``(size,)``, float64; NaN for a line that was
            never visited.
        before: Sum of squares of each line as it was before its first visit, likewise.
    """

    name: str
    axis: Axis
    length: int
    squares: Tensor
    before: Tensor

    @classmethod
    def none_yet(cls, view: SliceView) -> "LineUpdates":
        """No line of the kind that is live was visited."""
        size, others, *kernel = view.shape if view.axis == "row" else (view.shape[1], view.shape[0], *view.shape[2:])
        nothing = torch.full((size,), torch.nan, dtype=torch.float64)
        return cls(view.name, view.axis, others * math.prod(kernel), nothing, nothing.clone())

    def add(self, indices: Tensor, before: Tensor, after: Tensor) -> None:
        """Count one visit: lines ``indices``, shape ``(R,)``, whose values were, and are now, of shape ``(R, L)``."""
        place, before = indices.cpu(), before.double()
        known = self.squares[place]
        self.before[place] = torch.where(known.isnan(), before.square().sum(1), self.before[place])
        self.squares[place] = known.nan_to_num() + (after.double() - before).square().sum(1)

    @property
    def visited(self) -> Tensor:
        """Which lines were visited, bool, shape ``(size,)``."""
        return ~self.squares.isnan()

    @property
    def rms_change(self) -> Tensor:
        """Root mean square of each line's change, shape ``(size,)``."""
        return (self.squares / self.length).sqrt()

    @property
    def rms_before(self) -> Tensor:
        """Root mean square of each line before its first visit, shape ``(size,)``."""
        return (self.before / self.length).sqrt()


class UpdateTracker:
    """Adds up what the open slices of a network learn, from now on; a :class:`MoveListener`.

    Keeps the values that the live lines had when their slices came, and two numbers for each line, all in the CPU's
    memory.  A line that was visited once shows the exact change of the stored weight; one that was visited more often
    the root of the sum of its squared changes, visit by visit: the way it went, not how far it came.  Where weights are
    sharded, every call of a method is one of all processes.

    Args:
        handle: The open slices.
    """

    def __init__(self, handle: SliceHandle) -> None:
        self._present: dict[str, SliceView] = {}
        self._arrived: dict[str, Tensor] = {}
        self._found: dict[tuple[Axis, str], LineUpdates] = {}
        self.after_move(list(handle))
        handle.add_move_listener(self)

    def before_move(self, slices: Sequence[SliceView]) -> None:
        for view, values in zip(slices, _stored(slices), strict=True):
            self._found[view.axis, view.name].add(view.indices, self._arrived[view.name], values)

    def after_move(self, slices: Sequence[SliceView]) -> None:
        for view, values in zip(slices, _stored(slices), strict=True):
            self._present[view.name], self._arrived[view.name] = view, values
            self._found.setdefault((view.axis, view.name), LineUpdates.none_yet(view))

    def lines(self) -> list[LineUpdates]:
        """What was learned so far: columns before rows, each in the order of the network.

        The present visit counts as soon as it has changed anything.  May be called after the handle was closed.
        """
        found = copy.deepcopy(self._found)
        present = list(self._present.values())
        for view, values in zip(present, _stored(present), strict=True):
            if not torch.equal(values, self._arrived[view.name]):
                found[view.axis, view.name].add(view.indices, self._arrived[view.name], values)
        kinds: tuple[Axis, ...] = ("column", "row")
        return [found[axis, name] for axis in kinds for name in self._present if (axis, name) in found]

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as strings and tensors."""
        return {"arrived": dict(self._arrived), "lines": [vars(each) for each in copy.deepcopy(self._found).values()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; the slices must stand where they stood then."""
        self._arrived = dict(state["arrived"])
        self._found = {(saved["axis"], saved["name"]): LineUpdates(**saved) for saved in copy.deepcopy(state["lines"])}


def _stored(slices: Sequence[SliceView]) -> list[Tensor]:
    """The values of slices as they stand in the weights, in the CPU's memory, each ``(R, L)``."""
    values = full_tensors([view.parameter for view in slices])
    return [value.to("cpu", view.stored.dtype, copy=True) for view, value in zip(slices, values, strict=True)]
