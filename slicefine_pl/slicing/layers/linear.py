"""Sliced linear layers: ``torch.nn.Linear``, and transformers' ``Conv1D``, whose weight is stored transposed.

The forward pass is the ordinary dense matmul. The backward pass computes the gradient of the slice only, so a column
slice saves R columns of the input instead of the whole input.

Shapes:  T tokens (all leading dimensions of the input) · O outputs · I inputs · R lines of the slice
Source:  Kowsher et al., SliceFine, arXiv:2510.08513. PaCA (arXiv:2503.01905) also saves only the trained columns of
the input.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicefine_pl.slicing.layers.base import SlicedLayer
from slicefine_pl.slicing.layers.gradients import refuse_double_backward, slice_gradient
from slicefine_pl.slicing.layout import MatrixLayout
from slicefine_pl.slicing.schedule import Axis
from slicefine_pl.slicing.scores import zero_nonfinite
from slicefine_pl.slicing.slice import Slice

SCORE_TOKENS = 64  # tokens whose gradients rank the lines; more tokens cost more and rank no better
SKETCHED_TOKENS = 256  # tokens that add to a sketch; a language model learned a little more than with 64


class _SlicedLinear(torch.autograd.Function):
    """``F.linear`` that computes the weight gradient of a slice only; see :func:`sliced_linear`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        trainable: Tensor,
        selection: Tensor,
        axis: Axis,
        score: Tensor | None,
        score_axis: Axis,
        probe: Tensor | None,
        tokens: Tensor | None,
        of_inputs: bool,
        change: Tensor | None,
    ) -> Tensor:
        y = F.linear(x, weight, bias)
        kept = _select(x, selection) if axis == "column" else x
        if change is not None:
            change = change.to(y.dtype)
            y += kept.to(y.dtype) @ change
        count = SCORE_TOKENS if probe is None else SKETCHED_TOKENS
        sample = None if score is None else _sample(x, count).to(y.dtype, copy=True)  # a view would keep all of x alive
        ctx.save_for_backward(kept.to(y.dtype), weight, trainable, selection, sample, change)
        ctx.axis, ctx.score, ctx.score_axis, ctx.count = axis, score, score_axis, count
        ctx.probe, ctx.tokens, ctx.of_inputs = probe, tokens, of_inputs
        return y.detach()  # torch 2.11 returns a view here, which an in-place activation may not overwrite

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight, trainable, selection, sample, change = ctx.saved_tensors
        refuse_double_backward()
        needs_x, _, needs_bias, needs_slice, *_ = ctx.needs_input_grad
        outputs = grad_y.reshape(-1, grad_y.shape[-1])  # (T, O)
        inputs = kept.reshape(-1, kept.shape[-1])  # (T, R) for columns, (T, I) for rows
        grad_x = None
        if needs_x:
            # As a product of two matrices: for a permuted view, torch would multiply example by example.
            grad_x = outputs @ weight.to(grad_y.dtype)
            if change is not None:
                grad_x += outputs @ change.to(grad_y.dtype).t() @ selection.to(grad_y.dtype).t()
            grad_x = grad_x.view(*grad_y.shape[:-1], weight.shape[1])
        grad_bias = outputs.sum(0) if needs_bias else None
        grad_slice = None
        if needs_slice:
            # R first: on CPU this is several times faster than the (O, R) product.
            grad_slice = inputs.t() @ outputs if ctx.axis == "column" else _select(outputs, selection).t() @ inputs
            grad_slice = slice_gradient(grad_slice, trainable)
        if ctx.score is not None:
            inputs, outputs = sample.float(), _sample(outputs, ctx.count).float()
            if ctx.probe is None:
                ctx.score += zero_nonfinite(_line_norms(inputs, outputs, ctx.score_axis))
            else:
                ctx.score += zero_nonfinite(inputs.t() @ ((inputs if ctx.of_inputs else outputs) @ ctx.probe))
                _keep(inputs, ctx.tokens)
        return grad_x, None, grad_bias, grad_slice, *[None] * 8  # the gradients of what follows trainable


def _select(x: Tensor, selection: Tensor) -> Tensor:
    """Some features of ``x`` (..., n), or its components along directions, shape ``(..., R)``.

    Args:
        x: Inputs or outputs.
        selection: Indices ``(R,)``, or directions ``(n, R)``.
    """
    if selection.is_floating_point():
        tokens = x.reshape(-1, x.shape[-1])  # R first: on CPU this is several times faster than the (T, R) product
        return (selection.to(x.dtype).t() @ tokens.t()).t().view(*x.shape[:-1], selection.shape[1])
    return x.gather(-1, selection.expand(*x.shape[:-1], -1))  # a copy: a view would keep all of x alive until backward


def _keep(inputs: Tensor, tokens: Tensor) -> None:
    """Copy the first of a sample's tokens, with zeros where there are too few."""
    count = min(len(inputs), len(tokens))
    if count == 0:  # an expert that saw no token keeps its sample
        return
    tokens.zero_()
    tokens[:count] = zero_nonfinite(inputs[:count])


def _sample(x: Tensor, count: int) -> Tensor:
    """About ``count`` of the tokens, evenly spaced, shape ``(t, I)``.

    The stride is odd. With sequences of even length, an even stride would take the same positions of each.
    """
    tokens = x.reshape(-1, x.shape[-1])
    return tokens[:: tokens.shape[0] // count | 1]


def _line_norms(inputs: Tensor, outputs: Tensor, axis: Axis) -> Tensor:
    """The norm of every column or row of the weight gradient ``outputsᵀ @ inputs``, without computing the gradient.

    With X of shape (t, I) and G of shape (t, O), column j of GᵀX has the squared norm ``x_jᵀ (G Gᵀ) x_j``, and row i
    ``g_iᵀ (X Xᵀ) g_i``. This is cheap for few tokens t.
    """
    lines, others = (inputs, outputs) if axis == "column" else (outputs, inputs)
    return (lines * (others @ others.t() @ lines)).sum(0).clamp_min(0).sqrt()


def sliced_linear(x: Tensor, weight: Tensor, bias: Tensor | None, slice_: Slice) -> Tensor:
    """Compute ``F.linear(x, weight, bias)``, with a gradient for some lines of the weight only.

    For columns, the backward pass saves R columns of the input, shape ``(T, R)``; for rows, the input itself. The full
    weight gradient is never computed.

    Args:
        x: Input, shape ``(..., I)``.
        weight: Weight, shape ``(O, I)``, into which the slice's values have been written; receives no gradient.
        bias: Bias, shape ``(O,)``, or ``None``; receives a gradient if it requires one.
        slice_: The lines of the weight that receive a gradient.

    Returns:
        Output, shape ``(..., O)``.
    """
    result: Tensor = _SlicedLinear.apply(
        x,
        weight,
        bias,
        slice_.trainable,
        slice_.selection,
        slice_.axis,
        slice_.needed_score,
        slice_.score_axis,
        slice_.probe,
        slice_.tokens,
        slice_.basis == "pca",
        slice_.output_change(),
    )
    return result


class SlicedLinear(SlicedLayer):
    """Sliced ``torch.nn.Linear``, whose weight is stored as ``(O, I)``."""

    bias: nn.Parameter | None

    @classmethod
    def slicefine_layouts(cls, dense: nn.Module) -> list[MatrixLayout]:
        return [MatrixLayout()]

    def forward(self, x: Tensor) -> Tensor:
        self.slicefine_before_forward()
        slice_ = self.slicefine_slice("weight")
        assert slice_ is not None
        return sliced_linear(x, slice_.layout.view(self.slicefine_stored("weight")), self.bias, slice_)


class SlicedConv1D(SlicedLinear):
    """Sliced ``transformers.pytorch_utils.Conv1D`` (GPT-2), a linear map whose weight is stored as ``(I, O)``."""

    @classmethod
    def slicefine_layouts(cls, dense: nn.Module) -> list[MatrixLayout]:
        return [MatrixLayout(transposed=True)]
