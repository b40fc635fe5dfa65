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

from slicefine_pl.slicing.directions import Basis
from slicefine_pl.slicing.distributed.shards import LocalShard, full_tensors, local_slice_of, to_local
from slicefine_pl.slicing.layout import MatrixLayout, lines_along
from slicefine_pl.slicing.schedule import Axis
from slicefine_pl.slicing.scores import line_norms


class Slice(nn.Module):
    """The trainable lines of a matrix, as a child module of the layer that owns the weight.

    **Values.** ``trainable`` contains the lines themselves if ``base`` is ``None``. Otherwise it contains their scaled
    change since the slice arrived: the lines are ``base + scale * trainable``. In both cases its gradient is that of
    the lines, *without* the factor ``scale``. A step of the optimizer therefore changes the lines by ``scale`` times
    what it would change them otherwise, as if its learning rate were multiplied by ``scale`` for this slice alone.
    Weight decay is not multiplied: it shrinks the change.

    **Layout.** One line per row, shape ``(R, L)``, for columns as well: on CPU the matrix product that computes their
    gradient is several times faster in this layout. Where columns and rows alternate, L is the longer of the two, and
    shorter lines are padded. A slice has no keys in the state dict, because its lines are part of the layer's weight
    there.

    Args:
        layout: How the layer's parameter stores the matrix.
        rank: Number of lines (R).
        line_length: Numbers per line, with padding (L).
        like: The parameter, for its shape, type and device.
        dtype: Type of the trainable values; ``None`` takes the parameter's, and follows it when the model is cast.
        scaled: Whether ``trainable`` contains the scaled change of the lines, rather than the lines.

    Attributes:
        layout: As given.
        shape: Shape of the matrix, ``(O, I, ...)``.
        trainable: The trainable values, shape ``(R, L)``.
        base: The lines at the start of the visit, shape ``(R, L)``, in the weight's type; never trained. ``None`` if
            ``trainable`` contains the lines. A parameter and not a buffer, so that DDP copies it from the first process
            once, and FSDP2 shards it as it shards ``trainable``.
        scale: Factor of the change, greater than 0; 1 if ``base`` is ``None``.
        axis: Whether the lines are columns or rows.
        index: Which columns or rows, shape ``(R,)``, int64.
        score: Importance of every line that the next slice may take, shape ``(I,)`` or ``(O,)``, float32; ``None``
            unless slices move by importance.
        score_axis: Whether ``score`` ranks columns or rows.
        stays: Whether the slice is not expected to move again.
        basis: Along what the slice lies: ``"standard"`` for columns or rows.
        probe: For slices along directions only, as ``tokens``: see :class:`DirectionSlice`.
        tokens: See ``probe``.
        read_directly: Whether a gradient has arrived from code that read the parameter instead of calling the layer.
        synced_version: Version counter of ``trainable`` when the lines last equalled those in the weight.
        pruning_mask: Which entries of the matrix are not pruned, bool, shape ``(O, I, ...)``; ``None`` without pruning.
            Pruned entries stay zero while the slice is trained.
    """

    trainable: nn.Parameter
    base: nn.Parameter | None

    def __init__(
        self,
        layout: MatrixLayout,
        rank: int,
        line_length: int,
        like: Tensor,
        dtype: torch.dtype | None,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.shape = tuple(layout.view(like).shape)
        self.trainable = nn.Parameter(like.new_zeros(rank, line_length, dtype=dtype))
        base = nn.Parameter(like.new_zeros(rank, line_length), requires_grad=False) if scaled else None
        self.register_parameter("base", base)
        self.scale = 1.0
        # Plain attributes, not buffers: DDP would broadcast buffers at every forward pass.
        self.index = torch.zeros(rank, dtype=torch.int64, device=like.device)
        self.axis: Axis = "column"
        self.score: Tensor | None = None
        self.score_axis: Axis = "column"
        self.stays = False
        self.basis: Basis = "standard"
        self.probe: Tensor | None = None
        self.tokens: Tensor | None = None
        self.read_directly = False
        self.synced_version = -1
        self.pruning_mask: Tensor | None = None
        self._own_dtype = dtype is not None

    @property
    def kind(self) -> str:
        """What the trainable rows stand for: columns, rows or directions."""
        return f"{self.axis}s"

    @property
    def selection(self) -> Tensor:
        """What a layer needs to select this slice's part of its input or output: here the indices, ``(R,)``."""
        return self.index

    @property
    def needed_score(self) -> Tensor | None:
        """The score, if backward passes are to add to it: those of compiled code always do.

        Code that was compiled with a score would be compiled again without it.
        """
        return self.score if torch.compiler.is_compiling() or not self.stays else None

    @property
    def line_shape(self) -> tuple[int, ...]:
        """Shape of one line: ``(O, ...)`` for a column, ``(I, ...)`` for a row."""
        return (self.shape[0] if self.axis == "column" else self.shape[1], *self.shape[2:])

    @property
    def line_length(self) -> int:
        """Numbers of one line at the present position; the rest of a row of ``trainable`` is padding."""
        return math.prod(self.line_shape)

    def lines(self) -> Tensor:
        """The lines for which ``trainable`` stands, with padding, shape ``(R, L)``; sharded as ``trainable`` is.

        They have the finer of the types of ``trainable`` and ``base``, and may share the memory of ``trainable``.
        """
        return trained_lines(self.trainable, self.base, self.scale)

    @torch.no_grad()
    def write(self, shard: LocalShard, lines: Tensor) -> None:
        """Copy the lines to their position in the weight. Allocates R lines, not a matrix.

        Args:
            shard: The part of the matrix that this process stores.
            lines: All lines, shape ``(R, L)``, from :func:`gather_lines`.
        """
        if self.pruning_mask is not None:
            pruned = self.pruned_entries()
            lines = lines.masked_fill(pruned, 0)
            for values in self.parameters():
                values.masked_fill_(pruned, 0)
        shard.scatter(lines[:, : self.line_length].reshape(-1, *self.line_shape), self.axis, self.index)
        self._mark_synced()

    def merge(self, shard: LocalShard, lines: Tensor) -> None:
        """Write, also where the layer adds the change to its output instead; arguments as in :meth:`write`."""
        self.write(shard, lines)

    @property
    def adds_to_output(self) -> bool:
        """Whether the layer adds the trained change to its output, instead of to its weight after each step."""
        return False

    def output_change(self) -> Tensor | None:
        """What the layer adds to its output for each component of its input along the slice.

        Shape ``(R, O)``, and ``(R, O · K)`` for a convolution.
        """
        return None

    @torch.no_grad()
    def read(self, shard: LocalShard) -> None:
        """Begin to train the lines at the present position of the weight, with their present values."""
        lines = self._local_lines(shard)
        if self.base is None:
            to_local(self.trainable).copy_(lines)
        else:
            to_local(self.base).copy_(lines)
            to_local(self.trainable).zero_()
        self._mark_synced()

    @torch.no_grad()
    def reload(self, shard: LocalShard) -> None:
        """Read the weight after it was loaded; keep trained values that round to the loaded ones.

        A slice of a finer type than the weight would lose digits otherwise, for example when weight averaging restores
        the weights that it had swapped out.
        """
        before = [to_local(values).clone() for values in self.parameters()]
        kept = to_local(self.lines()).to(shard.values.dtype) == self._local_lines(shard)
        self.read(shard)
        for values, old in zip(self.parameters(), before, strict=True):
            to_local(values).copy_(torch.where(kept, old, to_local(values)))

    def _local_lines(self, shard: LocalShard) -> Tensor:
        """The lines of the weight at the present position, in its type, sharded as ``trainable`` is."""
        lines = shard.gather(self.axis, self.index, self.shape)
        return local_slice_of(flatten_lines(lines, self.trainable.shape[1]), self.trainable)

    def move_to(self, axis: Axis, indices: Sequence[int], shard: LocalShard, scale: float = 1.0) -> None:
        """Take a new position. The lines of the old one must have been written.

        Args:
            axis: Columns or rows.
            indices: Which ones, R numbers.
            shard: The part of the matrix that this process stores.
            scale: Factor of their change, where ``base`` is not ``None``.
        """
        self.axis = axis
        self.index.copy_(torch.tensor(indices))
        self.scale = scale
        self.read(shard)

    @property
    def in_sync(self) -> bool:
        """Whether ``trainable`` is unchanged since the lines last equalled those in the weight.

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
        return flatten_lines(self.select_lines(dense), self.trainable.shape[1]).to(self.trainable.dtype)

    def pruned_entries(self) -> Tensor:
        """Which trainable values are pruned and must stay zero, bool, shape ``(R, L)``; needs ``pruning_mask``."""
        assert self.pruning_mask is not None
        return self.select_flat(self.pruning_mask) == 0

    def add_gradient(self, dense: Tensor) -> None:
        """Add a dense gradient ``(O, I, ...)`` to the score."""
        assert self.score is not None
        self.score += line_norms(dense, self.score_axis)

    def start_score(self, axis: Axis) -> None:
        """Begin to add up the importance of all columns or rows, from zero."""
        self.score_axis = axis
        size = self.shape[1 if axis == "column" else 0]
        if self.score is not None and len(self.score) == size:
            self.score.zero_()  # in place, because a CUDA graph adds to this memory
        else:
            self.score = torch.zeros(size, device=self.index.device)

    def move_tensors_to(self, device: torch.device | str) -> None:
        """Move the tensors that are not parameters to the device on which the layer computes."""
        self.index = self.index.to(device)
        self.score = None if self.score is None else self.score.to(device)
        self.pruning_mask = None if self.pruning_mask is None else self.pruning_mask.to(device)

    def extra_repr(self) -> str:
        return f"{self.trainable.shape[0]} {self.kind} of {self.layout.parameter} {self.layout.part}".rstrip()

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


@torch.no_grad()
def trained_lines(trainable: Tensor, base: Tensor | None, scale: float) -> Tensor:
    """The lines for which trainable values ``(R, L)`` stand; the arguments are attributes of :class:`Slice`."""
    return trainable.detach() if base is None else torch.add(base, trainable, alpha=scale)


def flatten_lines(lines: Tensor, length: int) -> Tensor:
    """Lines ``(R, ...)`` in the shape ``(R, length)``: flattened, and padded with zeros."""
    lines = lines.flatten(1)
    padding = length - lines.shape[1]
    return F.pad(lines, (0, padding)) if padding else lines


def gather_lines(slices: Sequence[Slice]) -> list[Tensor]:
    """The lines of slices, each of shape ``(R, L)`` with padding, on every process.

    Where slices are sharded, this is a collective call, one for all slices of a type.
    """
    return full_tensors([slice_.lines() for slice_ in slices])


def duplicated_numel(net: nn.Module) -> int:
    """The number of parameter entries that ``net.parameters()`` lists in addition to those of the sliced weights."""
    return sum(values.numel() for slice_ in _slices(net) for values in slice_.parameters())


def padding_numel(net: nn.Module) -> int:
    """The number of slice entries that are padding, where columns and rows of different lengths alternate."""
    return sum(slice_.trainable.numel() - len(slice_.index) * slice_.line_length for slice_ in _slices(net))


def _slices(net: nn.Module) -> Iterator[Slice]:
    return (module for module in net.modules() if isinstance(module, Slice))
