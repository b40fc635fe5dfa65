"""A slice along directions of a layer's input, and how it moves.

Shapes:  I inputs · O outputs · R directions · K columns of a sketch · t tokens of a sample
"""

import warnings
from collections.abc import Callable
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slicefine_pl.slicing.cursor import SliceCursor, SliceSettings
from slicefine_pl.slicing.directions import (
    OVERSAMPLING,
    SKETCHED,
    Basis,
    input_share,
    leading_directions,
    random_directions,
    random_matrix,
)
from slicefine_pl.slicing.distributed.shards import LocalShard, full_tensors, local_slice_of, to_local
from slicefine_pl.slicing.fingerprint import sum_of_bits
from slicefine_pl.slicing.layers.base import SlicedLayer, child_name
from slicefine_pl.slicing.layout import MatrixLayout
from slicefine_pl.slicing.lr_scale import lr_scale_at
from slicefine_pl.slicing.rounding import Remainder, subtract
from slicefine_pl.slicing.scores import zero_nonfinite
from slicefine_pl.slicing.slice import Slice, gather_lines

HALF = (torch.bfloat16, torch.float16)
SAMPLED_TOKENS = 16  # of the last batch; they measure what share of the inputs lies along the new directions


class DirectionSlice(Slice):
    """A trainable matrix A (R, O) that changes a weight W (O, I) by ``scale · Aᵀ Pᵀ``.

    ``trainable`` is A. It starts at zero, and ``base`` is its value when it was last added to the weight, which was the
    trained dense weight then. All entries of the weight change.

    **When it is added.** After each step to a weight in float32 or float64. bfloat16 and float16 would round most of
    these small steps away. There the layer adds what was trained to its output, by two thin products, and the weight
    changes at moves and at the end only.

    Args:
        layout: How the layer's parameter stores the matrix.
        rank: Number of directions (R).
        like: The parameter, for its shape, type and device.
        dtype: Type of A; ``None`` takes the parameter's.
        basis: Where directions come from.
        key: Seed of random directions and of the sketch.

    Attributes:
        directions: P, orthonormal columns, shape ``(I, R)``, in the type of the weight.
        factor: ``scale`` as a tensor, for compiled code: a number would be part of it.
        score: The sketch, shape ``(I, K)``, float32; ``None`` for random directions.
        probe: Ω, the random matrix of the sketch, shape ``(O, K)`` for gradients and ``(I, K)`` for inputs.
        tokens: Some inputs of the last backward pass, shape ``(t, I)``, with zeros where there were fewer.
    """

    def __init__(
        self, layout: MatrixLayout, rank: int, like: Tensor, dtype: torch.dtype | None, basis: Basis, key: str
    ) -> None:
        outputs, inputs = layout.view(like).shape
        super().__init__(layout, rank, outputs, like, dtype)
        self.base = nn.Parameter(torch.zeros_like(self.trainable), requires_grad=False)
        self.directions = like.new_zeros(inputs, rank)
        self.factor = torch.ones((), device=like.device)
        self.index.copy_(torch.arange(rank))
        self.basis: Basis = basis
        if basis in SKETCHED:
            size = outputs if basis == "gradient" else inputs
            self.probe = random_matrix(size, rank + OVERSAMPLING, f"{key}/sketch").to(like.device, torch.float32)
            self.score = torch.zeros(inputs, rank + OVERSAMPLING, device=like.device)
            self.tokens = torch.zeros(SAMPLED_TOKENS, inputs, device=like.device)

    @property
    def kind(self) -> str:
        return "directions"

    @property
    def selection(self) -> Tensor:
        return self.directions

    @property
    def adds_to_output(self) -> bool:
        return self.directions.dtype in HALF

    def output_change(self) -> Tensor | None:
        return self._pending() * self.factor if self.adds_to_output else None

    def lines(self) -> Tensor:
        """The change of the weight along each direction that is not in the weight yet, shape ``(R, O)``."""
        return self._pending() * self.scale

    def _pending(self) -> Tensor:
        assert self.base is not None
        return self.trainable.detach() - self.base

    @torch.no_grad()
    def write(self, shard: LocalShard, lines: Tensor) -> None:
        """Add the change since the last time to the weight, if its type is fine enough for small changes.

        Args:
            shard: The part of the matrix that this process stores.
            lines: The change, shape ``(R, O)``, from :func:`gather_lines`.
        """
        if self.adds_to_output:
            self._mark_synced()
        else:
            self.merge(shard, lines)

    @torch.no_grad()
    def merge(self, shard: LocalShard, lines: Tensor) -> None:
        if lines.device.type == "cpu" and not lines.any():  # on a GPU, asking would wait for the device
            return
        shard.add_product(lines, self.directions)
        self.keep_written()

    @torch.no_grad()
    def read(self, shard: LocalShard) -> None:
        """Begin to train from the present weight."""
        to_local(self.trainable).zero_()
        self.keep_written()

    @torch.no_grad()
    def reload(self, shard: LocalShard) -> None:
        """Begin again from the weight that was loaded; A belonged to another one."""
        self.read(shard)

    def keep_written(self) -> None:
        """Take the weight as one that contains A."""
        assert self.base is not None
        to_local(self.base).copy_(to_local(self.trainable))
        self._mark_synced()

    def turn_to(self, directions: Tensor, scale: float, shard: LocalShard) -> None:
        """Take new directions ``(I, R)``. The change along the old ones must have been written."""
        self.directions.copy_(directions)
        self.scale = scale
        self.factor.fill_(scale)
        self.read(shard)

    def select_lines(self, dense: Tensor) -> Tensor:
        return self.directions.to(dense.dtype).t() @ dense.t()

    def add_gradient(self, dense: Tensor) -> None:
        """Add a dense gradient ``(O, I)`` to the sketch."""
        if self.basis == "gradient" and self.score is not None and self.probe is not None:
            self.score += zero_nonfinite(dense.float().t() @ self.probe)

    def move_tensors_to(self, device: torch.device | str) -> None:
        super().move_tensors_to(device)
        self.factor = self.factor.to(device)
        self.probe = None if self.probe is None else self.probe.to(device)
        self.tokens = None if self.tokens is None else self.tokens.to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        assert self.base is not None
        base = to_local(self.base)
        super()._apply(fn, recurse)
        self.directions = fn(self.directions)
        if self.base.dtype != self.trainable.dtype:
            self.base.data = base.to(self.base.device)
        return self


class DirectionCursor(SliceCursor):
    """Moves a :class:`DirectionSlice` to new directions.

    The first directions are random. At a move, the slice takes those of the sketch that backward passes added up since
    the last move, or new random ones.
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
        self.slice_.turn_to(self._random(), self._counted_scale(), self._shard())
        self._written = self._stored_version()

    def resync(self) -> None:
        """Write what was changed. If weight averaging swapped the weight and A out and in again, both are as before."""
        if self.slice_.adds_to_output or self._written == self._stored_version():
            self.slice_.write(self._shard(), self.slice_.lines())
        else:
            self.slice_.keep_written()

    def move(self) -> None:
        self.moves += 1
        slice_ = self.slice_
        if slice_.score is None or slice_.tokens is None:
            slice_.turn_to(self._random(), self._counted_scale(), self._shard())
            return
        together = dist.is_available() and dist.is_initialized()
        if together:
            dist.all_reduce(slice_.score)  # processes see different data, and must take the same directions
        directions, found = leading_directions(slice_.score, self._settings.rank, self._random())
        self._warn(found)
        share = input_share(slice_.tokens, directions)
        if together:
            dist.broadcast(directions, 0)  # libraries may differ in rounding and sign
            dist.all_reduce(share)
        slice_.turn_to(directions, self._measured_scale(share), self._shard())
        slice_.score.zero_()

    def _warn(self, found: int) -> None:
        rank = self._settings.rank
        if found < rank and not self._warned:
            self._warned = True
            seen = {"gradient": "gradient", "pca": "inputs"}[self._settings.basis]  # random directions have no sketch
            warnings.warn(
                f"The {seen} of {self._name} showed {found} directions since the last move, fewer than rank={rank}: the"
                " others are random. A smaller rank or a longer interval avoids this. A network that reads"
                " the weight without calling the layer shows no inputs.",
                stacklevel=4,
            )

    def _measured_scale(self, share: Tensor) -> float:
        """The factor of the learning rate, from sums of inputs and of their components."""
        if self._settings.lr_scale != "auto":
            return self._settings.lr_scale
        inputs, components = share.tolist()
        return inputs / components if components > 0 else self._counted_scale()

    def state_dict(self) -> dict[str, Any]:
        slice_ = self.slice_
        return {
            "moves": self.moves,
            "directions": slice_.directions.cpu().clone(),
            "scale": slice_.scale,
            "visited": {axis: columns.clone() for axis, columns in self.visited.items()},
            "score": None if slice_.score is None else slice_.score.cpu().clone(),
            "tokens": None if slice_.tokens is None else slice_.tokens.cpu().clone(),
            "values": [each.cpu().clone() for each in full_tensors(list(slice_.parameters()))],
            **self._added(),
        }

    def check_state(self, state: dict[str, Any]) -> None:
        if state["merged"] is None or sum_of_bits(self._matrix(self._stored())) == state["merged"]:
            return
        raise ValueError(
            f"The weight of {self._name} is not the one with which the slices were saved, so that their change cannot"
            " be taken out of it; load the network's state_dict of the same checkpoint first, and each once."
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.moves = state["moves"]
        self.slice_.turn_to(state["directions"], state["scale"], self._shard())
        self.visited = {axis: columns.clone() for axis, columns in state["visited"].items()}
        if self.slice_.score is not None and self.slice_.tokens is not None:
            self.slice_.score.copy_(state["score"])
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
        remainder = Remainder.of(before, merged, lines, self.slice_.directions)
        bits = sum_of_bits(merged) if lines.any() else None
        return {"remainder": tuple(each.cpu() for each in remainder), "merged": bits}

    def _matrix(self, stored: Tensor) -> Tensor:
        """The whole matrix, shape ``(O, I)``, in a parameter that may be sharded."""
        return self.slice_.layout.view(full_tensors([stored])[0])

    def _take_out(self, remainder: Remainder) -> None:
        """Take the change out of the weight, which was saved with it, because the layer adds it to its output."""
        shard = self._shard()
        [lines] = gather_lines([self.slice_])
        own = remainder.within(shard.values.shape, shard.dim, shard.offset)
        subtract(shard.values, shard.product(lines, self.slice_.directions), own)

    def _random(self) -> Tensor:
        return random_directions(self.slice_.shape[1], self._settings.rank, f"{self._key}/{self.moves}")

    def _counted_scale(self) -> float:
        return lr_scale_at(self._settings.lr_scale, self.layer, "column", self.slice_.shape, self._settings.rank)
