"""A slice along directions of a layer's input.

Shapes:  I inputs · O outputs · K entries of a convolution's kernel · R directions · C columns of a sketch · t tokens of
a sample
"""

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from slicefine_pl.slicing.directions import OVERSAMPLING, SKETCHED, Basis, random_matrix
from slicefine_pl.slicing.distributed.shards import LocalShard, to_local
from slicefine_pl.slicing.layout import MatrixLayout, lines_along
from slicefine_pl.slicing.rounding import HALF
from slicefine_pl.slicing.scores import zero_nonfinite
from slicefine_pl.slicing.slice import Slice

SAMPLED_TOKENS = 16  # of the last batch; they measure what share of the inputs lies along the new directions


class DirectionSlice(Slice):
    """A trainable matrix A (R, O · K) that changes a weight W (O, I, ...) by ``scale · Aᵀ Pᵀ``.

    A convolution with groups has one set of directions for the inputs of all groups.

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
        score: The sketch, shape ``(I, C)``, float32; ``None`` for random directions.
        probe: Ω, the random matrix of the sketch, shape ``(O · K, C)`` for gradients and ``(I, C)`` for inputs.
        tokens: Some inputs of the last backward pass, shape ``(t, I)``, with zeros where there were fewer; ``None`` for
            random directions and for convolutions.
    """

    def __init__(
        self, layout: MatrixLayout, rank: int, like: Tensor, dtype: torch.dtype | None, basis: Basis, key: str
    ) -> None:
        outputs, inputs, *kernel = layout.view(like).shape
        length = outputs * math.prod(kernel)
        super().__init__(layout, rank, length, like, dtype)
        self.base = nn.Parameter(torch.zeros_like(self.trainable), requires_grad=False)
        self.directions = like.new_zeros(rank, inputs).t()  # for R < 8, products are faster with this order in memory
        self.factor = torch.ones((), device=like.device)
        self.index.copy_(torch.arange(rank))
        self.basis: Basis = basis
        if basis in SKETCHED:
            size = length if basis == "gradient" else inputs
            self.probe = random_matrix(size, rank + OVERSAMPLING, f"{key}/sketch").to(like.device, torch.float32)
            self.score = torch.zeros(inputs, rank + OVERSAMPLING, device=like.device)
            if len(self.shape) == 2:
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
        """The change of the weight along each direction that is not in the weight yet, shape ``(R, O · K)``."""
        return self._pending() * self.scale

    def _pending(self) -> Tensor:
        assert self.base is not None
        return self.trainable.detach() - self.base

    @torch.no_grad()
    def write(self, shard: LocalShard, lines: Tensor) -> None:
        """Add the change since the last time to the weight, if its type is fine enough for small changes.

        Args:
            shard: The part of the matrix that this process stores.
            lines: The change, shape ``(R, O · K)``, from :func:`gather_lines`.
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
        return self.directions.to(dense.dtype).t() @ lines_along(dense, "column").flatten(1)

    def add_gradient(self, dense: Tensor) -> None:
        """Add a dense gradient ``(O, I, ...)`` to the sketch."""
        if self.basis == "gradient" and self.score is not None and self.probe is not None:
            self.score += zero_nonfinite(lines_along(dense.float(), "column").flatten(1) @ self.probe)

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
