"""Sliced convolutions: the ordinary dense forward pass, and the weight gradient of some channels only.

A column is an input channel and a row is an output channel, each with the whole kernel. With groups, the weight has as
many columns as one group has input channels, and column j means the j-th channel of every group.

Shapes:  B batch · G groups · O output channels · I input channels per group · K kernel size · R lines of the slice
Source:  Kowsher et al., SliceFine, arXiv:2510.08513. Channels as the rows and columns of a convolution are our choice.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicefine_pl.slicing.layers.base import SlicedLayer
from slicefine_pl.slicing.layers.gradients import refuse_double_backward, slice_gradient
from slicefine_pl.slicing.layout import MatrixLayout, lines_along
from slicefine_pl.slicing.schedule import Axis
from slicefine_pl.slicing.scores import line_norms
from slicefine_pl.slicing.slice import Slice

SCORE_EXAMPLES = 1  # examples whose weight gradient ranks the channels
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}  # by spatial dimensions; autocast ignores torch.convolution


class Geometry(NamedTuple):
    """Stride, padding and dilation of a convolution, one number per spatial dimension, and its groups (G)."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


class _SlicedConv(torch.autograd.Function):
    """A convolution that computes the weight gradient of a slice only; see :func:`sliced_conv`."""

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
        sample = None if score is None else x[:SCORE_EXAMPLES].to(y.dtype, copy=True)
        ctx.save_for_backward(kept.to(y.dtype), weight, trainable, index, sample)
        ctx.geometry, ctx.axis, ctx.score, ctx.score_axis, ctx.shape = geometry, axis, score, score_axis, x.shape
        ctx.own_groups = axis == "row" and geometry.groups > 1 and channels is not None
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight, trainable, index, sample = ctx.saved_tensors
        refuse_double_backward()
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
    """The input channels that the slice reads, for each line separately; ``None`` if these are not fewer than all.

    A column reads one channel of every group. A row reads all channels of its own group.
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
    """The weight gradient of the slice, shape ``(O, R, ...)`` or ``(R, I, ...)``."""
    geometry: Geometry = ctx.geometry
    if ctx.axis == "column":
        return _weight_gradient(grad_y, kept, weight, geometry)
    if geometry.groups > 1 and not ctx.own_groups:  # few groups: all rows together cost less than each alone
        return _weight_gradient(grad_y, kept, weight, geometry).index_select(0, index)
    single = geometry._replace(groups=len(index) if ctx.own_groups else 1)
    return _weight_gradient(grad_y.index_select(1, index), kept, weight, single)


def _input_gradient(grad_y: Tensor, shape: torch.Size, weight: Tensor, geometry: Geometry) -> Tensor:
    like = grad_y.new_empty(1).expand(shape)  # only the shape is used
    return _backward(grad_y, like, weight.to(grad_y.dtype), geometry, [True, False, False])[0]


def _weight_gradient(grad_y: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The weight gradient between given channels, shape ``(channels of grad_y, channels of x / G, *kernel)``."""
    shape = (grad_y.shape[1], x.shape[1] // geometry.groups, *weight.shape[2:])
    like = grad_y.new_empty(1).expand(shape)  # only the shape is used
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
    """Compute ``F.conv1d``, ``F.conv2d`` or ``F.conv3d``, with a weight gradient for some channels only.

    The backward pass saves the input channels that the slice reads. For rows that is the whole input, unless there are
    more groups than lines.

    Args:
        x: Input, shape ``(B, G · I, ...)``.
        weight: Weight, shape ``(O, I, ...)``, into which the slice's values have been written; receives no gradient.
        bias: Bias, shape ``(O,)``, or ``None``; receives a gradient if it requires one.
        slice_: The channels of the weight that receive a gradient.
        geometry: Stride, padding, dilation and groups.

    Returns:
        Output, shape ``(B, O, ...)``.
    """
    result: Tensor = _SlicedConv.apply(
        x, weight, bias, slice_.trainable, slice_.index, geometry, slice_.axis, slice_.needed_score, slice_.score_axis
    )
    return result


class SlicedConv(SlicedLayer):
    """Sliced ``torch.nn.Conv1d``, ``Conv2d`` or ``Conv3d``."""

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
        elif isinstance(self.padding, str):  # "same" may pad one side more than the other
            x = F.pad(x, self._reversed_padding_repeated_twice)
        else:
            padding = list(self.padding)
        unbatched = x.ndim == len(self.stride) + 1
        geometry = Geometry(list(self.stride), padding, list(self.dilation), self.groups)
        y = sliced_conv(
            x.unsqueeze(0) if unbatched else x, self.slicefine_stored("weight"), self.bias, slice_, geometry
        )
        return y.squeeze(0) if unbatched else y
