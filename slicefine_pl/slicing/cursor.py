"""The road of one layer's slice: where it stands, where it goes next, what it has visited.

Source:  Kowsher et al., SliceFine, arXiv:2510.08513, for the movement; the choice by importance is ours.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slicefine_pl.slicing.distributed.shards import LocalShard, MatrixLayout, full_tensors, local_slice_of, to_local
from slicefine_pl.slicing.layers.base import SlicedLayer, add_slice
from slicefine_pl.slicing.schedule import (
    Axis,
    AxisSchedule,
    Order,
    axis_at,
    check_choice,
    check_rank,
    slice_indices,
    visiting_order,
    visits_before,
)

SLICE_TYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def slice_type(chosen: torch.dtype | str | None) -> torch.dtype | None:
    """The type that ``slice_dtype`` chooses, given itself or by name: ``torch.float32`` or ``"float32"``.

    Raises:
        ValueError: Slices of this type cannot be trained.
    """
    dtype = SLICE_TYPES.get(chosen.removeprefix("torch.")) if isinstance(chosen, str) else chosen
    if chosen is not None and dtype not in SLICE_TYPES.values():
        raise ValueError(
            f"slice_dtype={chosen!r} cannot be trained; choose one of {', '.join(map(repr, SLICE_TYPES))}, as a name or"
            " as torch's type, or None."
        )
    return dtype


@dataclass(frozen=True)
class SliceSettings:
    """What all slices of a network have in common; the arguments of ``slice_model``."""

    rank: int
    axis: AxisSchedule
    order: Order
    seed: int
    slice_dtype: torch.dtype | None

    def __post_init__(self) -> None:
        check_rank(self.rank)
        check_choice("axis", self.axis, AxisSchedule)
        check_choice("order", self.order, Order)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The kinds of line that become live."""
        return ("column", "row") if self.axis == "alternate" else (self.axis,)


class SliceCursor:
    """One slice on its way over its block.

    Attributes:
        layer: The sliced layer.
        slice_: Its slice.
        moves: How often the slice has moved.
        visited: For each kind of line, which lines have been live, shape ``(size,)``, bool.
    """

    def __init__(self, name: str, layer: SlicedLayer, layout: MatrixLayout, settings: SliceSettings) -> None:
        matrix = layout.view(layer.slicefine_stored(layout.parameter))
        sizes: dict[Axis, int] = {"row": matrix.shape[0], "column": matrix.shape[1]}
        plain_name = name.replace("_orig_mod.", "")  # a compiled module visits the same slices as the plain one
        self._settings = settings
        self._orders = {
            axis: visiting_order(sizes[axis], settings.order, key=f"{settings.seed}/{plain_name}/{axis}")
            for axis in settings.axes
        }
        self.moves = 0
        self.visited = {axis: torch.zeros(sizes[axis], dtype=torch.bool) for axis in settings.axes}
        length = max(matrix.numel() // sizes[axis] for axis in settings.axes)
        self.layer = layer
        self.slice_ = add_slice(layer, layout, settings.rank, length, settings.slice_dtype)
        self.slice_.move_to(*self._scheduled(), self.shard())
        self._written = self._stored_version()
        self._arrived()

    def shard(self) -> LocalShard:
        """What this process holds of the block."""
        return self.layer.slicefine_shard(self.slice_)

    def write(self, trainable: Tensor) -> None:
        """Copy the live values, all of them given in ``(R, L)``, to their place in the stored parameter."""
        self.slice_.write(self.shard(), trainable)
        self._written = self._stored_version()

    def resync(self) -> None:
        """Agree with the stored parameter again, after somebody has changed the slice or both.

        Where both were changed, the parameter is right: an average of live lines says nothing, as they have stood at
        many places.
        """
        if self._written == self._stored_version():
            self.slice_.write(self.shard(), self.slice_.trainable.data)
        else:
            self.slice_.reload(self.shard())

    def _stored_version(self) -> int:
        """How many changes of the stored parameter torch has counted; those by a slice are not among them."""
        stored = self.layer.slicefine_stored(self.slice_.layout.parameter)
        return 0 if stored.is_inference() else stored._version

    def move(self) -> None:
        """Go on to the next position; what the slice learned must have been written to the weight."""
        self.moves += 1
        axis, indices = self._scheduled()
        if self.slice_.score is not None:
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(self.slice_.score)  # every process has seen other data, and all must go the same way
            indices = sorted(self.slice_.score.topk(self._settings.rank).indices.tolist())
        self.slice_.move_to(axis, indices, self.shard())
        self._arrived()

    def _scheduled(self) -> tuple[Axis, list[int]]:
        """Where the sweep stands after ``moves`` moves."""
        axis = axis_at(self.moves, self._settings.axis)
        visits = visits_before(self.moves, self._settings.axis)
        return axis, slice_indices(visits, self._settings.rank, self._orders[axis])

    def _arrived(self) -> None:
        self.visited[self.slice_.axis][self.slice_.index.cpu()] = True
        if self._settings.order == "importance":
            self.slice_.start_score(axis_at(self.moves + 1, self._settings.axis))

    def visited_entries(self) -> int:
        """Distinct entries of the block that have been live: c columns and r rows cross at c·r places."""
        outputs, inputs, *kernel = self.slice_.shape
        columns, rows = (int(self.visited[axis].sum()) if axis in self.visited else 0 for axis in ("column", "row"))
        return (columns * outputs + rows * inputs - columns * rows) * math.prod(kernel)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as plain numbers, strings and tensors.

        The live values themselves stand in the parameter, unless the slice is kept in another type than that.
        """
        slice_ = self.slice_
        other = slice_.trainable.dtype != self.layer.slicefine_stored(slice_.layout.parameter).dtype
        return {
            "moves": self.moves,
            "axis": slice_.axis,
            "index": slice_.index.cpu().clone(),
            "visited": {axis: lines.clone() for axis, lines in self.visited.items()},
            "score": None if slice_.score is None else slice_.score.cpu().clone(),
            "trainable": full_tensors([slice_.trainable])[0].cpu().clone() if other else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where a saved slice stood; the parameter must have been restored before."""
        self.moves = state["moves"]
        self.visited = {axis: lines.clone() for axis, lines in state["visited"].items()}
        self.slice_.move_to(state["axis"], state["index"].tolist(), self.shard())
        self._arrived()
        if self.slice_.score is not None:
            self.slice_.score.copy_(state["score"])
        if state["trainable"] is not None:
            to_local(self.slice_.trainable).copy_(local_slice_of(state["trainable"], self.slice_.trainable))
