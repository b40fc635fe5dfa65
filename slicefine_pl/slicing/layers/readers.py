"""Gradients for code that reads a sliced parameter instead of calling the layer.

Some networks compute with ``layer.weight`` directly. The class of a sliced layer therefore has a property in front of
each sliced parameter. It returns the parameter's values, and passes the slice's part of their gradient to the slice.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from slicefine_pl.slicing.distributed.shards import is_sharded
from slicefine_pl.slicing.layers.gradients import slice_gradient
from slicefine_pl.slicing.slice import Slice


class _Read(torch.autograd.Function):
    """The values of a stored parameter. Their gradient goes to the slice."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, trainable: Tensor, slice_: Slice) -> Tensor:
        ctx.slice_ = slice_
        ctx.save_for_backward(trainable)  # so that torch notices if the slice changes before backward
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        slice_: Slice = ctx.slice_
        (trainable,) = ctx.saved_tensors
        dense = slice_.layout.view(gradient.to_dense() if gradient.is_sparse else gradient)
        if not torch.compiler.is_compiling():
            slice_.read_directly = True
        if slice_.needed_score is not None:
            slice_.add_gradient(dense)
        grad_slice = slice_gradient(slice_.select_lines(dense), trainable)
        return (gradient if ctx.needs_input_grad[0] else None), grad_slice, None


def reader(parameter: str) -> property:
    """The property that stands in front of a sliced parameter in the class of a sliced layer."""

    def read(self: Any) -> Tensor:
        values: Tensor = self.slicefine_stored(parameter)
        if is_sharded(values):
            return values  # FSDP2 itself reads shards; a network computes with full weights
        self.slicefine_before_forward()
        values = self.slicefine_merged(parameter)
        if not torch.is_grad_enabled():
            return values
        for slice_ in self.slicefine_slices():
            if slice_.layout.parameter == parameter:
                values = _Read.apply(values, slice_.trainable, slice_)
        return values

    return property(read)
