"""How a slice along directions moves.

Shapes:  I inputs · O outputs · R directions
"""

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slicefine_pl.slicing.cursor import SliceCursor, SliceSettings
from slicefine_pl.slicing.direction_slice import DirectionSlice
from slicefine_pl.slicing.directions import input_share, leading_directions, random_directions
from slicefine_pl.slicing.distributed.shards import full_tensor, full_tensors, local_slice_of, to_local
from slicefine_pl.slicing.fingerprint import Fingerprint, sum_of_bits
from slicefine_pl.slicing.layers.base import SlicedLayer, child_name
from slicefine_pl.slicing.layout import MatrixLayout, flatten_kernel, unflatten_kernel
from slicefine_pl.slicing.lr_scale import lr_scale_at
from slicefine_pl.slicing.rounding import Remainder, subtract
from slicefine_pl.slicing.scores import sum_over_processes
from slicefine_pl.slicing.slice import gather_lines
from slicefine_pl.slicing.visited_directions import VisitedDirections


class DirectionCursor(SliceCursor):
    """Moves a :class:`DirectionSlice` to new directions.

    The first directions are random. At a move, the slice takes those of the sketch that backward passes added up since
    the last move, or new random ones.

    Attributes:
        visited_directions: The directions at which the slice has been.
    """

    slice_: DirectionSlice

    def __init__(self, name: str, layer: SlicedLayer, layout: MatrixLayout, settings: SliceSettings) -> None:
        self._settings, self.layer = settings, layer
        self._name = name
        self._key = f"{settings.seed}/{name.replace('_orig_mod.', '')}/directions"
        stored = layer.slicefine_stored(layout.parameter)
        self.slice_ = DirectionSlice(layout, settings.rank, stored, settings.slice_dtype, settings.basis, self._key)
        layer.add_module(child_name(layout.parameter, layout.part), self.slice_)
        columns = self.slice_.shape[1]
        self.moves, self.visited = 0, {"column": torch.zeros(columns, dtype=torch.bool)}
        self._arrived = list(range(columns))  # each direction changes all columns
        self._warned = False
        self.visited_directions = VisitedDirections(self._matrix(stored), f"{self._key}/probe")
        self._turn_to(self._random(), self._counted_scale())
        self._written = self._stored_version()

    @property
    def base(self) -> Fingerprint | None:
        return self.visited_directions.base

    def resync(self) -> None:
        """Write what was changed. If weight averaging swapped the weight and A out and in again, both are as before."""
        if self.slice_.adds_to_output or self._written == self._stored_version():
            self.slice_.write(self._shard(), self.slice_.lines())
        else:
            self.slice_.keep_written()

    def move(self) -> None:
        self.moves += 1
        slice_ = self.slice_
        if slice_.score is None:
            self._turn_to(self._random(), self._counted_scale())
            return
        sum_over_processes(slice_.score)  # they see different data, and must take the same directions
        directions, found = leading_directions(slice_.score, self._settings.rank, self._random())
        if not slice_.stays:
            self._warn(found)
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(directions, 0)  # libraries may differ in rounding and sign
        self._turn_to(directions, self._measured_scale(directions))
        slice_.score.zero_()

    def _turn_to(self, directions: Tensor, scale: float) -> None:
        self.slice_.turn_to(directions, scale, self._shard())
        if not self.visited_directions.dropped:  # collecting a sharded matrix costs communication
            self.visited_directions.arrive(self.slice_.directions, self._matrix(self._stored()))

    def _warn(self, found: int) -> None:
        rank = self._settings.rank
        outputs = self.slice_.trainable.shape[1]  # a gradient has no more directions than these
        possible = min(rank, outputs) if self._settings.basis == "gradient" else rank
        if found < possible and not self._warned:
            self._warned = True
            seen = {"gradient": "gradient", "pca": "inputs"}[self._settings.basis]  # random directions have no sketch
            warnings.warn(
                f"The {seen} of {self._name} showed {found} directions since the last move, fewer than rank={rank}: the"
                " others are random. A smaller rank or a longer interval avoids this. A network that reads"
                " the weight without calling the layer shows no inputs.",
                stacklevel=4,
            )

    def _measured_scale(self, directions: Tensor) -> float:
        """The factor of the learning rate, from sums of inputs and of their components along new directions.

        As for columns, a matrix with more inputs than outputs counts its outputs. Convolutions count only.
        """
        if self._settings.lr_scale != "auto" or self.slice_.tokens is None:
            return self._counted_scale()
        share = input_share(self.slice_.tokens, directions)
        sum_over_processes(share)
        inputs, components = share.tolist()
        outputs, size = self.slice_.shape
        return min(1, outputs / size) * inputs / components if components > 0 else self._counted_scale()

    def state_dict(self) -> dict[str, Any]:
        slice_ = self.slice_
        return {
            "moves": self.moves,
            "directions": slice_.directions.cpu().clone(),
            "scale": slice_.scale,
            "stays": slice_.stays,
            "visited": {axis: columns.clone() for axis, columns in self.visited.items()},
            "score": None if slice_.score is None else slice_.score.cpu().clone(),
            "tokens": None if slice_.tokens is None else slice_.tokens.cpu().clone(),
            "values": [each.cpu().clone() for each in full_tensors(list(slice_.parameters()))],
            "visited_directions": self.visited_directions.state_dict(),
            **self._added(),
        }

    def check_state(self, state: dict[str, Any]) -> None:
        if "visited_directions" not in state:
            raise ValueError(
                f"The saved slice of {self._name} lacks the directions at which it has been, because an earlier version"
                " of the package saved it. Start a new run from the saved weights."
            )
        if state["merged"] is None or sum_of_bits(self._matrix(self._stored())) == state["merged"]:
            return
        raise ValueError(
            f"The weight of {self._name} is not the one with which the slices were saved, so that their change cannot"
            " be taken out of it; load the network's state_dict of the same checkpoint first, and each once."
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.moves = state["moves"]
        self.slice_.turn_to(state["directions"], state["scale"], self._shard())
        self.slice_.stays = state.get("stays", False)  # earlier versions did not know it
        self.visited = {axis: columns.clone() for axis, columns in state["visited"].items()}
        self.visited_directions.load_state_dict(state["visited_directions"])
        if self.slice_.score is not None:
            self.slice_.score.copy_(state["score"])
        if self.slice_.tokens is not None:
            self.slice_.tokens.copy_(state["tokens"])
        for values, saved in zip(self.slice_.parameters(), state["values"], strict=True):
            to_local(values).copy_(local_slice_of(saved, values))
        if state["remainder"] is None:
            self.slice_.keep_written()  # the weight was saved with its change
        else:
            self._take_out(Remainder(*state["remainder"]))

    def _added(self) -> dict[str, Any]:
        """What a state contains of a change that the saved weight contains, and the layer adds to its output.

        ``remainder`` is what taking the change out of that weight does not give back, ``None`` if it stays in the
        weight; ``merged`` is the sum over the weight's bits, ``None`` if there is no change.
        """
        if not self.slice_.adds_to_output:
            return {"remainder": None, "merged": None}
        parameter = self.slice_.layout.parameter
        before, merged = (self._matrix(each) for each in (self._stored(), self.layer.slicefine_merged(parameter)))
        [lines] = gather_lines([self.slice_])
        remainder = Remainder.of(flatten_kernel(before), flatten_kernel(merged), lines, self.slice_.directions)
        bits = sum_of_bits(merged) if lines.any() else None
        return {"remainder": tuple(each.cpu() for each in remainder), "merged": bits}

    def _matrix(self, stored: Tensor) -> Tensor:
        """The whole matrix, shape ``(O, I, ...)``, in a parameter that may be sharded."""
        return self.slice_.layout.view(full_tensor(stored))

    def _take_out(self, remainder: Remainder) -> None:
        """Take the change out of the weight, which was saved with it, because the layer adds it to its output."""
        shard = self._shard()
        [lines] = gather_lines([self.slice_])
        rows = flatten_kernel(shard.values).clone()
        own = remainder.within(rows.shape, shard.dim, shard.offset * (shard.kernel_size if shard.dim == 0 else 1))
        subtract(rows, shard.product(lines, self.slice_.directions), own)
        shard.values.copy_(unflatten_kernel(rows, shard.values.shape))

    def _random(self) -> Tensor:
        return random_directions(self.slice_.shape[1], self._settings.rank, f"{self._key}/{self.moves}")

    def _counted_scale(self) -> float:
        return lr_scale_at(self._settings.lr_scale, self.layer, "column", self.slice_.shape, self._settings.rank)
