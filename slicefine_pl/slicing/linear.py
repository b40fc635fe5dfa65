"""Sliced linear maps: one dense forward pass, and the gradient of the live lines only.

Covers ``torch.nn.Linear`` and transformers' ``Conv1D``, which is a linear map with a transposed weight.

Shapes:  T tokens (all leading dimensions of the input) · O outputs · I inputs · R rank of the slice
Source:  Kowsher et al., SliceFine, arXiv:2510.08513; saving only the live columns of the input is also PaCA's idea
(arXiv:2503.01905).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from slicefine_pl.slicing.layer import SlicedLayer
from slicefine_pl.slicing.positions import Line


class _SlicedLinear(torch.autograd.Function):
    """``F.linear`` whose weight gradient exists for the live lines only; see :func:`sliced_linear`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, live: Tensor, index: Tensor, line: Line
    ) -> Tensor:
        y = F.linear(x, weight, bias)
        # index_select copies: a view would keep all of x alive until backward.
        kept = x.index_select(-1, index) if line == "column" else x
        ctx.save_for_backward(kept.to(y.dtype), weight, live, index)
        ctx.line = line
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight, live, index = ctx.saved_tensors
        needs_x, _, needs_bias, needs_live, *_ = ctx.needs_input_grad
        outputs = grad_y.reshape(-1, grad_y.shape[-1])  # (T, O)
        inputs = kept.reshape(-1, kept.shape[-1])  # (T, R) for columns, (T, I) for rows
        grad_x = grad_y @ weight.to(grad_y.dtype) if needs_x else None
        grad_bias = outputs.sum(0) if needs_bias else None
        grad_live = None
        if needs_live:
            # R first: several times faster than the (O, R) product on CPU for R << O.
            grad_live = inputs.t() @ outputs if ctx.line == "column" else outputs.index_select(1, index).t() @ inputs
            grad_live = F.pad(grad_live, (0, live.shape[1] - grad_live.shape[1])).to(live.dtype)
        return grad_x, None, grad_bias, grad_live, None, None


def sliced_linear(x: Tensor, weight: Tensor, bias: Tensor | None, live: Tensor, index: Tensor, line: Line) -> Tensor:
    """Apply a linear map of which only some lines of the weight are trainable.

    The value is ``F.linear(x, weight, bias)``: ``weight`` must already hold the live values.  Saves the live columns of
    the input for backward, shape ``(T, R)``, or for rows the input itself; the full weight gradient is never formed.

    Args:
        x: Input, shape ``(..., I)``.
        weight: Shape ``(O, I)``; receives no gradient.
        bias: Shape ``(O,)``, or ``None``; receives a gradient if it requires one.
        live: The lines that receive a gradient, shape ``(R, L)``, ``L`` at least the length of a line.
        index: Which lines they are, shape ``(R,)``, int64.
        line: Whether ``index`` counts columns (inputs) or rows (outputs).

    Returns:
        Output, shape ``(..., O)``.
    """
    result: Tensor = _SlicedLinear.apply(x, weight, bias, live, index, line)
    return result


class SlicedLinear(SlicedLayer):
    """A linear map with its weight stored as ``(O, I)``, as in ``torch.nn.Linear``."""

    bias: nn.Parameter | None

    def matrix(self) -> Tensor:
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.writes_in_forward:
            self.write()
        return sliced_linear(x, self.matrix(), self.bias, self.live, self.index, self.line)


class SlicedConv1D(SlicedLinear):
    """A linear map with its weight stored as ``(I, O)``, as in transformers' ``Conv1D`` (GPT-2)."""

    def matrix(self) -> Tensor:
        return self.weight.t()


def sliced_kind(module: nn.Module) -> type[SlicedLayer] | None:
    """The kind of sliced layer that can stand in for ``module``; ``None`` if there is none.

    A subclass counts when it computes exactly what its base class computes; a weight behind a parametrization does not.
    """
    weight = module._parameters.get("weight")
    if weight is None or nn.parameter.is_lazy(weight) or not weight.is_floating_point():
        return None
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return None  # the out_proj of torch's MultiheadAttention, which reads the weight without calling the module
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        return SlicedLinear
    names = {(base.__module__, base.__name__) for base in type(module).__mro__ if "forward" in vars(base)}
    # By name, because this floor imports torch only; the one forward must be Conv1D's own.
    if names == {("transformers.pytorch_utils", "Conv1D"), ("torch.nn.modules.module", "Module")}:
        return SlicedConv1D
    return None
