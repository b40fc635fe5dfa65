"""Position and history of one slice: its present, next and visited lines.

Source:  Kowsher et al., SliceFine, arXiv:2510.08513, for the movement. Choosing lines by importance is our addition.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from slicefine_pl.arguments import check_choice, check_seed
from slicefine_pl.slicing.directions import Basis
from slicefine_pl.slicing.distributed.shards import LocalShard, full_tensors, local_slice_of, to_local
from slicefine_pl.slicing.fingerprint import Fingerprint
from slicefine_pl.slicing.layers.base import SlicedLayer
from slicefine_pl.slicing.layers.opening import add_slice
from slicefine_pl.slicing.layout import MatrixLayout
from slicefine_pl.slicing.lr_scale import LRScale, lr_scale_at
from slicefine_pl.slicing.schedule import (
    Axis,
    AxisSchedule,
    Order,
    axis_at,
    check_rank,
    slice_indices,
    visiting_order,
    visits_before,
)
from slicefine_pl.slicing.scores import sum_over_processes
from slicefine_pl.slicing.untouched import Untouched

SLICE_TYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def slice_type(chosen: torch.dtype | str | None) -> torch.dtype | None:
    """The type that a ``slice_dtype`` setting means, such as ``torch.float32`` or ``"float32"``.

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
    """The settings that all slices of a network share; see the arguments of :func:`slice_model`."""

    rank: int
    axis: AxisSchedule
    order: Order
    seed: int
    slice_dtype: torch.dtype | None
    lr_scale: LRScale
    basis: Basis = "standard"

    def __post_init__(self) -> None:
        check_rank(self.rank)
        check_choice("axis", self.axis, AxisSchedule)
        check_choice("order", self.order, Order)
        check_seed(self.seed)
        check_choice("basis", self.basis, Basis)
        if self.basis != "standard":
            self._check_directions()

    def _check_directions(self) -> None:
        for name, only in {"axis": "column", "order": "random"}.items():
            if (value := getattr(self, name)) != only:
                raise ValueError(
                    f"{name}={value!r} is for single columns or rows; with basis={self.basis!r}, a slice lies along"
                    f" directions of the input: choose {name}={only!r}, or basis='standard'."
                )

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, for a file."""
        dtype = None if self.slice_dtype is None else str(self.slice_dtype).removeprefix("torch.")
        return {**asdict(self), "slice_dtype": dtype}

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes that slices take."""
        return ("column", "row") if self.axis == "alternate" else (self.axis,)

    @property
    def scaled(self) -> bool:
        """Whether slices of columns and rows train the scaled change of their lines, rather than the lines."""
        return self.lr_scale != 1


class SliceCursor:
    """Moves one slice over its matrix, and records where it has been.

    Args:
        name: Name of the matrix. Together with the seed it determines the visiting order.
        layer: The opened layer, to which the slice is added.
        layout: The matrix.
        settings: Rank, axis, order, seed and type.

    Attributes:
        layer: The sliced layer.
        slice_: The slice.
        moves: How often the slice has moved.
        visited: For each axis, which lines have been trained and written, shape ``(I,)`` or ``(O,)``, bool.
        untouched: The entries at which the slice has never been; ``None`` if it changes all.
    """

    _arrived: list[int] | None = None  # of a visit that has not counted yet; on the host, so that reading never waits
    untouched: Untouched | None = None

    def __init__(self, name: str, layer: SlicedLayer, layout: MatrixLayout, settings: SliceSettings) -> None:
        matrix = layout.view(layer.slicefine_stored(layout.parameter))
        sizes: dict[Axis, int] = {"row": matrix.shape[0], "column": matrix.shape[1]}
        plain_name = name.replace("_orig_mod.", "")  # a compiled module visits the same lines as the plain one
        self._settings = settings
        self._orders = {
            axis: visiting_order(sizes[axis], settings.order, key=f"{settings.seed}/{plain_name}/{axis}")
            for axis in settings.axes
        }
        self.moves = 0
        self.visited = {axis: torch.zeros(sizes[axis], dtype=torch.bool) for axis in settings.axes}
        line_length = max(matrix.numel() // sizes[axis] for axis in settings.axes)
        self.layer = layer
        self.slice_ = add_slice(layer, layout, settings.rank, line_length, settings.slice_dtype, settings.scaled)
        self.untouched = Untouched(matrix, settings.axes)
        self._move_to(*self._scheduled())
        self._written = self._stored_version()

    @property
    def base(self) -> Fingerprint | None:
        """Fingerprint of the matrix before training; ``None`` if it had no values yet."""
        return None if self.untouched is None else self.untouched.base

    def write(self, lines: Tensor) -> None:
        """Copy all lines of the slice, shape ``(R, L)``, to their position in the weight, and count it as visited."""
        self.slice_.write(self._shard(), lines)
        self.count_visit()

    def merge(self, lines: Tensor) -> None:
        """Write the lines, also where the layer adds them to its output until now."""
        self.slice_.merge(self._shard(), lines)
        self.count_visit()

    def loses_change(self) -> bool:
        """Whether closing the layer would lose a change, because merging it needs the other processes as well."""
        slice_ = self.slice_
        return slice_.adds_to_output and self.layer.slicefine_is_sharded() and bool(to_local(slice_.lines()).any())

    def count_visit(self) -> None:
        """Count the present position as visited."""
        if self._arrived is not None:
            self.visited[self.slice_.axis][self._arrived] = True
            self._arrived = None
        self._written = self._stored_version()

    def resync(self) -> None:
        """Make slice and weight equal again, after other code changed one or both of them.

        If only the slice was changed, it is written. If the weight was changed, it is read: where weight averaging
        changed both, an average of slices is meaningless, because they had different positions.
        """
        if self._written == self._stored_version():
            self.slice_.write(self._shard(), self.slice_.lines())
        else:
            self.slice_.reload(self._shard())

    def move(self) -> None:
        """Move to the next position. The trained values must have been written to the weight."""
        self.moves += 1
        axis, indices = self._scheduled()
        if self.slice_.score is not None:
            sum_over_processes(self.slice_.score)  # they see different data, and must move to the same lines
            if self.slice_.score.any():
                indices = sorted(self.slice_.score.topk(self._settings.rank).indices.tolist())
        self._move_to(axis, indices)

    def visited_numel(self) -> int:
        """The number of distinct entries of the matrix that have been trained.

        c visited columns and r visited rows cross at c · r entries, which count once.
        """
        outputs, inputs, *kernel = self.slice_.shape
        columns, rows = (int(self.visited[axis].sum()) if axis in self.visited else 0 for axis in ("column", "row"))
        return (columns * outputs + rows * inputs - columns * rows) * math.prod(kernel)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as plain numbers, strings and tensors.

        The trained values are saved here only where they cannot be read from the weight.
        """
        slice_ = self.slice_
        of_weight = slice_.base is None and slice_.trainable.dtype == self._stored().dtype
        values = [] if of_weight else [each.cpu().clone() for each in full_tensors(list(slice_.parameters()))]
        return {
            "moves": self.moves,
            "axis": slice_.axis,
            "index": slice_.index.cpu().clone(),
            "scale": slice_.scale,
            "stays": slice_.stays,
            "visited": {axis: lines.clone() for axis, lines in self.visited.items()},
            "score": None if slice_.score is None else slice_.score.cpu().clone(),
            "values": values,
            "untouched": None if self.untouched is None else self.untouched.state_dict(),
        }

    def check_state(self, state: dict[str, Any]) -> None:
        """Check that a state is complete, and that the weight is the one with which it was saved, if that matters.

        Raises:
            ValueError: An earlier version saved it, or the weight is another one.
        """
        if "scale" not in state:
            raise ValueError(
                "The saved slices lack the factors of their learning rates, because an earlier version of the package"
                " saved them. Start a new run from the saved weights."
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the position and history of a saved slice. The weight must have been restored before."""
        self.moves = state["moves"]
        self.visited = {axis: lines.clone() for axis, lines in state["visited"].items()}
        self._move_to(state["axis"], state["index"].tolist(), state["scale"])
        self.slice_.stays = state.get("stays", False)  # earlier versions did not know it
        if self.untouched is not None:
            self.untouched.load_state_dict(state["untouched"])
        if self.slice_.score is not None:
            self.slice_.score.copy_(state["score"])
        for values, saved in zip(self.slice_.parameters(), state["values"], strict=False):  # none saved: the weight's
            to_local(values).copy_(local_slice_of(saved, values))

    def _scheduled(self) -> tuple[Axis, list[int]]:
        """Axis and lines of the position after ``moves`` moves, unless importance decides."""
        axis = axis_at(self.moves, self._settings.axis)
        visits = visits_before(self.moves, self._settings.axis)
        return axis, slice_indices(visits, self._settings.rank, self._orders[axis])

    def _move_to(self, axis: Axis, indices: Sequence[int], scale: float | None = None) -> None:
        if scale is None:
            scale = lr_scale_at(self._settings.lr_scale, self.layer, axis, self.slice_.shape, self._settings.rank)
        if self.untouched is not None:
            self.untouched.leave_out(axis, indices, self._shard())
        self.slice_.move_to(axis, indices, self._shard(), scale)
        self._arrived = list(indices)
        if self._settings.order == "importance":
            self.slice_.start_score(axis_at(self.moves + 1, self._settings.axis))

    def _shard(self) -> LocalShard:
        return self.layer.slicefine_shard(self.slice_)

    def _stored(self) -> Tensor:
        return self.layer.slicefine_stored(self.slice_.layout.parameter)

    def _stored_version(self) -> int:
        """Torch's version counter of the stored weight. Writes by slices do not increase it."""
        stored = self._stored()
        return 0 if stored.is_inference() else stored._version
