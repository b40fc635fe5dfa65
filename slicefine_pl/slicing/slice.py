"""The live lines of one matrix: their values, where they stand, and how they move.

Answers: which numbers are trained, and where in the stored parameter do they belong?  Knows neither how a layer
computes nor when a slice moves.

Shapes:  O outputs · I inputs · R rank of the slice · a *line* is a column (O numbers) or a row (I numbers), for
convolutions times the size of the kernel
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicefine_pl.slicing.distributed.shards import LocalShard, MatrixLayout, lines_along, local_slice_of, to_local
from slicefine_pl.slicing.schedule import Axis


class Slice(nn.Module):
    """The live lines of a block.  A child of the layer that owns the parameter, without keys of its own.

    ``live`` holds the lines one below the other, shape ``(R, L)``, whatever the axis: the gradient's matrix product is
    then several times faster on CPU than in the transposed layout.  ``L`` is the length of a line; where rows and
    columns alternate it is the longer of the two, and the tail of a shorter line is padding.

    Attributes:
        layout: Where the lines belong.
        shape: Of the block, ``(O, I, ...)``.
        trainable: The trainable lines, shape ``(R, L)``.
        index: Which lines of the axis are live, shape ``(R,)``, int64.
        line: Whether ``index`` counts columns or rows.
        score: Importance of every line that could be live next, shape ``(size,)``, float32; ``None`` unless asked for.
        score_line: Whether ``score`` ranks columns or rows.
        read_directly: Whether a gradient has come past the layer, from somebody who read its parameter.
        synced_version: Version of ``live`` when it last held what the stored parameter holds at its place.
        pruning_mask: Which entries of the matrix are not pruned, bool of the matrix's shape; ``None`` without pruning.
            Pruned entries stay zero while the slice is trained.
    """

    trainable: nn.Parameter

    def __init__(
        self, layout: MatrixLayout, rank: int, line_length: int, like: Tensor, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.layout = layout
        self.shape = tuple(layout.view(like).shape)
        self.trainable = nn.Parameter(like.new_zeros(rank, line_length, dtype=dtype))
        # Plain attributes, no buffers: DDP would send buffers around at every forward pass.
        self.index = torch.zeros(rank, dtype=torch.int64, device=like.device)
        self.axis: Axis = "column"
        self.score: Tensor | None = None
        self.score_axis: Axis = "column"
        self.read_directly = False
        self.synced_version = -1
        self.pruning_mask: Tensor | None = None
        self._own_dtype = dtype is not None

    @torch.no_grad()
    def write(self, shard: LocalShard, trainable: Tensor) -> None:
        """Copy the live values to their place: R lines, no allocation of the matrix's size.

        Args:
            shard: What this process holds of the block.
            trainable: All live values, shape ``(R, L)``; ``self.live`` may be this process's share of them.
        """
        if self.pruning_mask is not None:
            trainable = trainable.masked_fill(self.pruned_entries(), 0)
            self.trainable.copy_(trainable)
        shard.scatter(trainable[:, : self.line_length].reshape(-1, *self.line_shape), self.axis, self.index)
        self._mark_synced()

    @torch.no_grad()
    def read(self, shard: LocalShard) -> None:
        """Copy the stored values at ``index`` into ``live``."""
        lines = flatten_lines(shard.gather(self.axis, self.index, self.shape), self.trainable)
        to_local(self.trainable).copy_(local_slice_of(lines, self.trainable))
        self._mark_synced()

    @torch.no_grad()
    def reload(self, shard: LocalShard) -> None:
        """Gather after the stored values were loaded; a ``live`` that is rounded to these very values stays as it is.

        Only a ``live`` of a finer type has digits to lose: weight averaging loads a second time, after it was restored.
        """
        own = to_local(self.trainable).clone()
        self.read(shard)
        loaded = to_local(self.trainable)
        loaded.copy_(torch.where(own.to(shard.values.dtype).to(own.dtype) == loaded, own, loaded))

    @property
    def in_sync(self) -> bool:
        """Whether ``live`` holds what the stored parameter holds at its place, as far as torch counts changes."""
        return not self.trainable.is_inference() and self.synced_version == self.trainable._version

    def _mark_synced(self) -> None:
        if not (torch.compiler.is_compiling() or self.trainable.is_inference()):  # inference tensors count no changes
            self.synced_version = self.trainable._version

    def move_to(self, axis: Axis, indices: Sequence[int], shard: LocalShard) -> None:
        """Leave the live lines where they stand, with what they learned, and make other lines live."""
        self.axis = axis
        self.index.copy_(torch.tensor(indices))
        self.read(shard)

    @property
    def line_shape(self) -> tuple[int, ...]:
        """Shape of one line: ``(O, ...)`` for a column, ``(I, ...)`` for a row."""
        return (self.shape[0] if self.axis == "column" else self.shape[1], *self.shape[2:])

    @property
    def line_length(self) -> int:
        """Numbers of a line as it is now; the rest of ``live`` is padding."""
        return math.prod(self.line_shape)

    def select_lines(self, dense: Tensor) -> Tensor:
        """The live lines of a dense tensor ``(O, I, ...)``, a matrix or its gradient, shape ``(R, ...)``."""
        return lines_along(dense, self.axis).index_select(0, self.index)

    def select_flat(self, dense: Tensor) -> Tensor:
        """The same in the form of ``live``."""
        return flatten_lines(self.select_lines(dense), self.trainable)

    def pruned_entries(self) -> Tensor:
        """Which live values must stay zero, bool of the shape of ``live``; needs ``keep``."""
        assert self.pruning_mask is not None
        return self.select_flat(self.pruning_mask) == 0

    def start_score(self, axis: Axis) -> None:
        """Start to collect the importance of every column or row, from nothing."""
        self.score_axis = axis
        self.score = torch.zeros(self.shape[1 if axis == "column" else 0], device=self.index.device)

    def extra_repr(self) -> str:
        return f"{self.trainable.shape[0]} {self.axis}s of {self.layout.parameter} {self.layout.part}".rstrip()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        trainable = self.trainable.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if (
            self.trainable.dtype != trainable.dtype and self._own_dtype
        ):  # a cast of the model leaves the slice's precision alone
            self.trainable.data = trainable.to(self.trainable.device)
        self.move_tensors_to(fn(self.index).device)
        return self

    def move_tensors_to(self, device: torch.device | str) -> None:
        """Have what is no parameter where the layer computes."""
        self.index = self.index.to(device)
        self.score = None if self.score is None else self.score.to(device)
        self.pruning_mask = None if self.pruning_mask is None else self.pruning_mask.to(device)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.synced_version = -1  # the live lines of a copy count their changes from nothing

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Save nothing: the values stand in the parameter of the layer."""

    def _load_from_state_dict(self, *_: Any) -> None:
        """Load nothing: the layer gathers the values when its parameter has come."""


def duplicated_numel(net: nn.Module) -> int:
    """How many of ``net.parameters()``'s numbers are those of slices, and stand in the sliced weights as well."""
    return sum(slice_.trainable.numel() for slice_ in _slices(net))


def padding_numel(net: nn.Module) -> int:
    """How many of them belong to no line: where rows and columns alternate, a shorter line is padded."""
    return sum(slice_.trainable.numel() - len(slice_.index) * slice_.line_length for slice_ in _slices(net))


def _slices(net: nn.Module) -> Iterator[Slice]:
    return (module for module in net.modules() if isinstance(module, Slice))


def refuse_second_derivatives() -> None:
    """Raise in a backward pass whose result is to be differentiated again: compact layers keep too little for that."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "Second derivatives (create_graph=True) do not go through compact slices; open them with backend='mask'."
        )


def flatten_lines(lines: Tensor, trainable: Tensor) -> Tensor:
    """Lines ``(R, ...)`` in the shape, and the type, of ``live``: flattened, and padded with zeros."""
    lines = lines.flatten(1)
    padding = trainable.shape[1] - lines.shape[1]
    return (F.pad(lines, (0, padding)) if padding else lines).to(trainable.dtype)


def slice_gradient(lines: Tensor, trainable: Tensor) -> Tensor:
    """Lines ``(R, ...)`` of a gradient as the gradient of ``live``, in a backward pass that was given ``live``.

    Compiled, it must use the values of ``live``: else they are not kept, and torch cannot notice that the slice changed
    after the forward pass.
    """
    gradient = flatten_lines(lines, trainable)
    return torch.add(gradient, trainable, alpha=0) if torch.compiler.is_compiling() else gradient


def line_norms(gradient: Tensor, axis: Axis) -> Tensor:
    """Norm of every column or row of a dense gradient ``(O, I, ...)``, shape ``(size,)``."""
    return zero_nonfinite(lines_along(gradient, axis).flatten(1).float().norm(dim=1))


def zero_nonfinite(norms: Tensor) -> Tensor:
    """Norms that may be added to a score: a step that overflows is dropped later, and counts for nothing."""
    return norms.nan_to_num(nan=0.0, posinf=0.0)
