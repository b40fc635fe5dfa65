"""What the backward passes of sliced layers share: the gradient of a slice."""

import torch
from torch import Tensor

from slicefine_pl.slicing.slice import flatten_lines


def refuse_double_backward() -> None:
    """Refuse a backward pass that is recorded: compact layers save too little for second derivatives.

    Raises:
        RuntimeError: The backward pass runs with ``create_graph=True``.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "Compact slices do not support second derivatives (create_graph=True); open them with backend='mask'."
        )


def slice_gradient(lines: Tensor, trainable: Tensor) -> Tensor:
    """The gradient of ``trainable``, shape ``(R, L)``, from lines ``(R, ...)`` of a dense gradient.

    A compiled backward pass must use the values of ``trainable``: otherwise they are not saved, and torch cannot detect
    that the slice was changed in place after the forward pass. They are subtracted zero times rather than added:
    Inductor of torch 2.11 ignores ``alpha`` when it fuses a sum with a matrix product.
    """
    gradient = flatten_lines(lines, trainable.shape[1]).to(trainable.dtype)
    return torch.sub(gradient, trainable, alpha=0) if torch.compiler.is_compiling() else gradient
