"""Sliced convolutions: the ordinary dense forward pass, and the weight gradient of some channels only.

A column is an input channel and a row is an output channel, each with the whole kernel. With groups, the weight has as
many columns as one group has input channels, and column j means the j-th channel of every group. In the same way, one
set of directions of the input channels serves all groups.

Shapes:  B batch · G groups · O output channels · I input channels per group · K kernel size · R lines of the slice ·
C columns of a sketch
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
from slicefine_pl.slicing.scores import line_norms, zero_nonfinite
from slicefine_pl.slicing.slice import Slice

SCORE_EXAMPLES = 1  # examples whose weight gradient ranks the channels
SKETCHED_POSITIONS = 256  # about how many input positions of a batch add to a sketch
SKETCHED_EXAMPLES = 4  # how many examples they come from; more, if these have too few positions
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
        selection: Tensor,
        geometry: Geometry,
        axis: Axis,
        score: Tensor | None,
        score_axis: Axis,
        probe: Tensor | None,
        of_inputs: bool,
        change: Tensor | None,
    ) -> Tensor:
        convolution = CONVOLUTIONS[len(geometry.stride)]
        y = convolution(x, weight, bias, *geometry)
        ctx.own_groups = False
        if selection.is_floating_point():
            kept = _along(x, selection, geometry.groups)
        else:
            channels = _channels(selection, weight, geometry.groups, axis)
            # index_select copies: a view would keep all of x alive until backward.
            kept = x if channels is None else x.index_select(1, channels)
            ctx.own_groups = axis == "row" and geometry.groups > 1 and channels is not None
        if change is not None:
            change = _lines_as_weight(change, weight).to(y.dtype)
            y += convolution(kept.to(y.dtype), change, None, *geometry)
        sample = None
        if score is not None:
            sample = (x[:SCORE_EXAMPLES] if probe is None else _sample(x)).to(y.dtype, copy=True)
        ctx.save_for_backward(kept.to(y.dtype), weight, trainable, selection, sample, change)
        ctx.geometry, ctx.axis, ctx.score, ctx.score_axis, ctx.shape = geometry, axis, score, score_axis, x.shape
        ctx.probe, ctx.of_inputs = probe, of_inputs
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight, trainable, selection, sample, change = ctx.saved_tensors
        refuse_double_backward()
        needs_x, _, needs_bias, needs_slice, *_ = ctx.needs_input_grad
        grad_x = _input_gradient(grad_y, ctx.shape, weight, ctx.geometry) if needs_x else None
        if grad_x is not None and change is not None:
            components = _input_gradient(grad_y, kept.shape, change, ctx.geometry)
            grad_x += _along(components, selection.t(), ctx.geometry.groups)
        grad_bias = grad_y.transpose(0, 1).flatten(1).sum(1) if needs_bias else None
        grad_slice = None
        if needs_slice:
            block = _block_gradient(ctx, grad_y, kept, weight, selection)  # (O, R, K) or (R, I, K)
            grad_slice = slice_gradient(lines_along(block, ctx.axis), trainable)
        if ctx.score is not None and ctx.probe is None:
            full = _weight_gradient(grad_y[:SCORE_EXAMPLES], sample, weight, ctx.geometry)
            ctx.score += line_norms(full, ctx.score_axis)
        elif ctx.score is not None:
            ctx.score += zero_nonfinite(_sketch(ctx, grad_y[: len(sample)].float(), sample.float(), weight))
        return grad_x, None, grad_bias, grad_slice, *[None] * 8  # the gradients of what follows trainable


def _along(x: Tensor, directions: Tensor, groups: int) -> Tensor:
    """The components ``(B, G · R, ...)`` of channels ``(B, G · I, ...)`` along directions ``(I, R)``."""
    components = directions.to(x.dtype).t() @ _by_group(x, groups)
    return components.reshape(len(x), groups * directions.shape[1], *x.shape[2:])


def _by_group(x: Tensor, groups: int) -> Tensor:
    """Channels ``(B, G · I, ...)`` as ``(B, G, I, positions)``."""
    return x.reshape(len(x), groups, x.shape[1] // groups, x.shape[2:].numel())


def _lines_as_weight(lines: Tensor, weight: Tensor) -> Tensor:
    """Lines ``(R, O · K)`` as the weight ``(O, R, ...)`` of a convolution of components."""
    return lines.reshape(len(lines), len(weight), *weight.shape[2:]).transpose(0, 1)


def _sample(x: Tensor) -> Tensor:
    """Some positions of the first examples, evenly spaced, shape ``(examples, channels, positions)``.

    The stride is odd. With an even width, an even stride would take the same columns of each line.
    """
    count = max(1, x.shape[2:].numel())
    examples = min(len(x), max(SKETCHED_EXAMPLES, -(-SKETCHED_POSITIONS // count)))
    return x[:examples].flatten(2)[..., :: count * examples // SKETCHED_POSITIONS | 1]


def _sketch(ctx: Any, grad_y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """What a sample of inputs ``(examples, G · I, positions)`` adds to a sketch, shape ``(I, C)``.

    The gradient of the weight is not computed: its product with Ω is that of the inputs with the gradient that they
    would have if Ω were the weight.
    """
    groups = ctx.geometry.groups
    if ctx.of_inputs:
        projected = _along(x, ctx.probe, groups)
    else:
        shape = torch.Size([len(x), groups * ctx.probe.shape[1], *ctx.shape[2:]])
        projected = _sample(_input_gradient(grad_y, shape, _lines_as_weight(ctx.probe.t(), weight), ctx.geometry))
    inputs, projected = _by_group(x, groups), _by_group(projected, groups)
    sums: Tensor = torch.tensordot(inputs, projected, dims=([0, 1, 3], [0, 1, 3]))
    return sums


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

    The backward pass saves the input channels that the slice reads, or the components along its directions. For rows
    that is the whole input, unless there are more groups than lines.

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
        x,
        weight,
        bias,
        slice_.trainable,
        slice_.selection,
        geometry,
        slice_.axis,
        slice_.needed_score,
        slice_.score_axis,
        slice_.probe,
        slice_.basis == "pca",
        slice_.output_change(),
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
