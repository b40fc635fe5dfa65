"""Sliced convolutions: one dense forward pass, and the weight gradient of the live channels only.

A column is an input channel, a row an output channel, each with all places of the kernel.  With groups, a weight has as
many columns as a group has input channels, and column j stands for the j-th channel of every group.

Shapes:  B batch · G groups · O output channels · I input channels of a group · K places of the kernel · R rank
Source:  Kowsher et al., SliceFine, arXiv:2510.08513; rows and columns of a convolution as channels are our reading.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicefine_pl.slicing.distributed.shards import MatrixLayout, lines_along
from slicefine_pl.slicing.layers.base import SlicedLayer
from slicefine_pl.slicing.schedule import Axis
from slicefine_pl.slicing.slice import Slice, line_norms, refuse_second_derivatives, slice_gradient

SCORE_EXAMPLES = 1  # the weight gradient of so many examples ranks the channels
CONVOLUTIONS = {
    1: F.conv1d,
    2: F.conv2d,
    3: F.conv3d,
}  # by spatial dimensions; unlike torch.convolution known to autocast


class Geometry(NamedTuple):
    """How a convolution lays its kernel; a number for each spatial dimension, and the number of groups (G)."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


class _SlicedConv(torch.autograd.Function):
    """A convolution whose weight gradient exists for the live channels only; see :func:`sliced_conv`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        trainable: Tensor,
        index: Tensor,
        geometry: Geometry,
        axis: Axis,
        score: Tensor | None,
        score_axis: Axis,
    ) -> Tensor:
        y = CONVOLUTIONS[len(geometry.stride)](x, weight, bias, *geometry)
        channels = _channels(index, weight, geometry.groups, axis)
        # index_select copies: a view would keep all of x alive until backward.
        kept = x if channels is None else x.index_select(1, channels)
        sample = None if score is None else x[:SCORE_EXAMPLES].to(y.dtype)
        ctx.save_for_backward(kept.to(y.dtype), weight, trainable, index, sample)
        ctx.geometry, ctx.axis, ctx.score, ctx.score_axis, ctx.shape = geometry, axis, score, score_axis, x.shape
        ctx.own_groups = axis == "row" and geometry.groups > 1 and channels is not None
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight, trainable, index, sample = ctx.saved_tensors
        refuse_second_derivatives()
        needs_x, _, needs_bias, needs_slice, *_ = ctx.needs_input_grad
        grad_x = _input_gradient(grad_y, ctx.shape, weight, ctx.geometry) if needs_x else None
        grad_bias = grad_y.transpose(0, 1).flatten(1).sum(1) if needs_bias else None
        grad_slice = None
        if needs_slice:
            block = _block_gradient(ctx, grad_y, kept, weight, index)  # (O, R, K) or (R, I, K)
            grad_slice = slice_gradient(lines_along(block, ctx.axis), trainable)
        if ctx.score is not None:
            full = _weight_gradient(grad_y[:SCORE_EXAMPLES], sample, weight, ctx.geometry)
            ctx.score += line_norms(full, ctx.score_axis)
        return grad_x, None, grad_bias, grad_slice, *[None] * 5


def _channels(index: Tensor, weight: Tensor, groups: int, axis: Axis) -> Tensor | None:
    """The input channels that the live lines read, once for each line; ``None`` where that is no fewer than all.

    A live column reads a channel of every group, a live row all channels of its own group.
    """
    outputs, inputs = weight.shape[:2]
    if axis == "column":
        first = torch.arange(groups, device=index.device).unsqueeze(1) * inputs
        return (first + index).flatten()
    if len(index) >= groups:
        return None
    first = (index // (outputs // groups) * inputs).unsqueeze(1)
    return (first + torch.arange(inputs, device=index.device)).flatten()


def _block_gradient(ctx: Any, grad_y: Tensor, kept: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """Weight gradient of the live lines, shape ``(O, R, ...)`` or ``(R, I, ...)``."""
    geometry: Geometry = ctx.geometry
    if ctx.axis == "column":
        return _weight_gradient(grad_y, kept, weight, geometry)
    if geometry.groups > 1 and not ctx.own_groups:  # few groups: to take each row's apart would cost more than all rows
        return _weight_gradient(grad_y, kept, weight, geometry).index_select(0, index)
    lone = geometry._replace(groups=len(index) if ctx.own_groups else 1)
    return _weight_gradient(grad_y.index_select(1, index), kept, weight, lone)


def _input_gradient(grad_y: Tensor, shape: torch.Size, weight: Tensor, geometry: Geometry) -> Tensor:
    like = grad_y.new_empty(1).expand(shape)  # only its shape counts
    return _backward(grad_y, like, weight.to(grad_y.dtype), geometry, [True, False, False])[0]


def _weight_gradient(grad_y: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Weight gradient between the given channels, shape ``(channels of grad_y, channels of x / G, *kernel)``."""
    shape = (grad_y.shape[1], x.shape[1] // geometry.groups, *weight.shape[2:])
    like = grad_y.new_empty(1).expand(shape)  # only its shape counts
    return _backward(grad_y, x, like, geometry, [False, True, False])[1]


def _backward(grad_y: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: list[bool]) -> tuple[Tensor, ...]:
    stride, padding, dilation, groups = geometry
    gradients: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        grad_y, x, weight, None, stride, padding, dilation, False, [0] * len(stride), groups, wanted
    )
    return gradients


def sliced_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slice_: Slice,
    geometry: Geometry,
) -> Tensor:
    """Convolve with a weight of which only some channels are trainable.

    The value is that of ``F.conv1d``, ``F.conv2d`` or ``F.conv3d``: ``weight`` must already hold the live values.
    Saves for backward the channels of the input that the live lines read; for rows of no more groups than lines, the
    input itself.

    Args:
        x: Input, shape ``(B, G I, ...)``.
        weight: Shape ``(O, I, ...)``; receives no gradient.
        bias: Shape ``(O,)``, or ``None``; receives a gradient if it requires one.
        slice_: The channels that receive a gradient.
        geometry: Stride, padding, dilation and groups.

    Returns:
        Output, shape ``(B, O, ...)``.
    """
    result: Tensor = _SlicedConv.apply(
        x, weight, bias, slice_.trainable, slice_.index, geometry, slice_.axis, slice_.score, slice_.score_axis
    )
    return result


class SlicedConv(SlicedLayer):
    """A convolution: ``torch.nn.Conv1d``, ``Conv2d`` or ``Conv3d``."""

    bias: nn.Parameter | None
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]

    @classmethod
    def slicefine_layouts(cls, dense: nn.Module) -> list[MatrixLayout]:
        return [MatrixLayout()]

    def forward(self, x: Tensor) -> Tensor:
        self.slicefine_before_forward()
        slice_ = self.slicefine_slice("weight")
        assert slice_ is not None
        padding = [0] * len(self.stride)
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        elif isinstance(self.padding, str):  # "same" may need more on one side than on the other
            x = F.pad(x, self._reversed_padding_repeated_twice)
        else:
            padding = list(self.padding)
        unbatched = x.ndim == len(self.stride) + 1
        geometry = Geometry(list(self.stride), padding, list(self.dilation), self.groups)
        y = sliced_conv(
            x.unsqueeze(0) if unbatched else x, self.slicefine_stored("weight"), self.bias, slice_, geometry
        )
        return y.squeeze(0) if unbatched else y
