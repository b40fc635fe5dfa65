"""The trainable lines of one matrix: their values and their position, and how they are copied to and from the weight.

Does not know how a layer computes, or when slices move.

Shapes:  O outputs · I inputs · R lines of the slice · L numbers of a line: O for a column and I for a row, times the
size of a convolution's kernel
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicefine_pl.slicing.distributed.shards import LocalShard, local_slice_of, to_local
from slicefine_pl.slicing.layout import MatrixLayout, lines_along
from slicefine_pl.slicing.schedule import Axis


class Slice(nn.Module):
    """The trainable lines of a matrix, as a child module of the layer that owns the weight.

    The values are stored one line per row, shape ``(R, L)``, for columns as well: on CPU the matrix product that
    computes their gradient is several times faster in this layout. Where columns and rows alternate, L is the longer
    of the two, and shorter lines are padded. A slice has no keys in the state dict, because its values are part of the
    layer's weight there.

    Args:
        layout: How the layer's parameter stores the matrix.
        rank: Number of lines (R).
        line_length: Numbers per line, with padding (L).
        like: The parameter, for its shape, type and device.
        dtype: Type of the trainable values; ``None`` takes the parameter's, and follows it when the model is cast.

    Attributes:
        layout: As given.
        shape: Shape of the matrix, ``(O, I, ...)``.
        trainable: The trainable values, shape ``(R, L)``.
        axis: Whether the lines are columns or rows.
        index: Which columns or rows, shape ``(R,)``, int64.
        score: Importance of every line that the next slice may take, shape ``(I,)`` or ``(O,)``, float32; ``None``
            unless slices move by importance.
        score_axis: Whether ``score`` ranks columns or rows.
        read_directly: Whether a gradient has arrived from code that read the parameter instead of calling the layer.
        synced_version: Version counter of ``trainable`` when its values last equalled those in the weight.
        pruning_mask: Which entries of the matrix are not pruned, bool, shape ``(O, I, ...)``; ``None`` without pruning.
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
        # Plain attributes, not buffers: DDP would broadcast buffers at every forward pass.
        self.index = torch.zeros(rank, dtype=torch.int64, device=like.device)
        self.axis: Axis = "column"
        self.score: Tensor | None = None
        self.score_axis: Axis = "column"
        self.read_directly = False
        self.synced_version = -1
        self.pruning_mask: Tensor | None = None
        self._own_dtype = dtype is not None

    @property
    def line_shape(self) -> tuple[int, ...]:
        """Shape of one line: ``(O, ...)`` for a column, ``(I, ...)`` for a row."""
        return (self.shape[0] if self.axis == "column" else self.shape[1], *self.shape[2:])

    @property
    def line_length(self) -> int:
        """Numbers of one line at the present position; the rest of a row of ``trainable`` is padding."""
        return math.prod(self.line_shape)

    @torch.no_grad()
    def write(self, shard: LocalShard, values: Tensor) -> None:
        """Copy trained values to their position in the weight. Allocates R lines, not a matrix.

        Args:
            shard: The part of the matrix that this process stores.
            values: The full trained values, shape ``(R, L)``. ``self.trainable`` may be one shard of them.
        """
        if self.pruning_mask is not None:
            values = values.masked_fill(self.pruned_entries(), 0)
            self.trainable.copy_(values)
        shard.scatter(values[:, : self.line_length].reshape(-1, *self.line_shape), self.axis, self.index)
        self._mark_synced()

    @torch.no_grad()
    def read(self, shard: LocalShard) -> None:
        """Copy the values at the present position of the weight into ``trainable``."""
        lines = flatten_lines(shard.gather(self.axis, self.index, self.shape), self.trainable)
        to_local(self.trainable).copy_(local_slice_of(lines, self.trainable))
        self._mark_synced()

    @torch.no_grad()
    def reload(self, shard: LocalShard) -> None:
        """Read the weight after it was loaded; keep trained values that round to the loaded ones.

        A slice of a finer type than the weight would lose digits otherwise, for example when weight averaging restores
        the weights that it had swapped out.
        """
        before = to_local(self.trainable).clone()
        self.read(shard)
        loaded = to_local(self.trainable)
        loaded.copy_(torch.where(before.to(shard.values.dtype).to(before.dtype) == loaded, before, loaded))

    def move_to(self, axis: Axis, indices: Sequence[int], shard: LocalShard) -> None:
        """Take a new position. The trained values of the old one must have been written."""
        self.axis = axis
        self.index.copy_(torch.tensor(indices))
        self.read(shard)

    @property
    def in_sync(self) -> bool:
        """Whether ``trainable`` is unchanged since its values last equalled those in the weight.

        Relies on torch's version counter, which misses changes of ``parameter.data`` and steps of fused optimizers.
        """
        return not self.trainable.is_inference() and self.synced_version == self.trainable._version

    def _mark_synced(self) -> None:
        if not (torch.compiler.is_compiling() or self.trainable.is_inference()):  # inference tensors have no version
            self.synced_version = self.trainable._version

    def select_lines(self, dense: Tensor) -> Tensor:
        """The lines of this slice in a tensor ``(O, I, ...)``, such as a dense gradient; shape ``(R, ...)``."""
        return lines_along(dense, self.axis).index_select(0, self.index)

    def select_flat(self, dense: Tensor) -> Tensor:
        """The lines of this slice in a tensor ``(O, I, ...)``, in the shape and type of ``trainable``."""
        return flatten_lines(self.select_lines(dense), self.trainable)

    def pruned_entries(self) -> Tensor:
        """Which trainable values are pruned and must stay zero, bool, shape ``(R, L)``; needs ``pruning_mask``."""
        assert self.pruning_mask is not None
        return self.select_flat(self.pruning_mask) == 0

    def start_score(self, axis: Axis) -> None:
        """Begin to add up the importance of all columns or rows, from zero."""
        self.score_axis = axis
        self.score = torch.zeros(self.shape[1 if axis == "column" else 0], device=self.index.device)

    def move_tensors_to(self, device: torch.device | str) -> None:
        """Move the tensors that are not parameters to the device on which the layer computes."""
        self.index = self.index.to(device)
        self.score = None if self.score is None else self.score.to(device)
        self.pruning_mask = None if self.pruning_mask is None else self.pruning_mask.to(device)

    def extra_repr(self) -> str:
        return f"{self.trainable.shape[0]} {self.axis}s of {self.layout.parameter} {self.layout.part}".rstrip()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.trainable.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.trainable.dtype != before.dtype and self._own_dtype:  # a cast of the model keeps slice_dtype
            self.trainable.data = before.to(self.trainable.device)
        self.move_tensors_to(fn(self.index).device)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.synced_version = -1  # the version counter of a copy starts at zero

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Save nothing: the values are part of the layer's parameter."""

    def _load_from_state_dict(self, *_: Any) -> None:
        """Load nothing: the layer calls :meth:`reload` when its parameter has been loaded."""


def flatten_lines(lines: Tensor, like: Tensor) -> Tensor:
    """Lines ``(R, ...)`` in the shape ``(R, L)`` and type of ``like``: flattened, and padded with zeros."""
    lines = lines.flatten(1)
    padding = like.shape[1] - lines.shape[1]
    return (F.pad(lines, (0, padding)) if padding else lines).to(like.dtype)


def duplicated_numel(net: nn.Module) -> int:
    """The number of parameter entries that ``net.parameters()`` lists twice: in a slice and in the sliced weight."""
    return sum(slice_.trainable.numel() for slice_ in _slices(net))


def padding_numel(net: nn.Module) -> int:
    """The number of slice entries that are padding, where columns and rows of different lengths alternate."""
    return sum(slice_.trainable.numel() - len(slice_.index) * slice_.line_length for slice_ in _slices(net))


def _slices(net: nn.Module) -> Iterator[Slice]:
    return (module for module in net.modules() if isinstance(module, Slice))
