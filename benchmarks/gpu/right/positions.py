"""Where a slice lies in a weight, worked out from its view alone: a reference that shares no code with the package."""

import torch
from torch import Tensor, nn

from slicefine_pl.slicing import SliceView


def matrix_of(stored: Tensor, view: SliceView) -> Tensor:
    """The matrix ``(O, I, ...)`` of a view, in a tensor that is stored like the view's parameter.

    Recognized by its shape, so sizes must be unequal: a matrix may be stored transposed, as one third of the
    projections of attention, or as a stack ``(E, O, I)``, whose dimension E comes last in the matrix.
    """
    part = view.name.rpartition(".")[2]
    if part in ("q", "k", "v"):
        stored = stored.chunk(3)["qkv".index(part)]
    for order in ((0, 1), (1, 0), (1, 2, 0)):
        permuted = stored.permute(*order) if len(order) == stored.ndim else stored
        if tuple(permuted.shape) == view.shape:
            return permuted
    raise AssertionError(f"{view.name}: {tuple(stored.shape)} does not store a matrix of shape {view.shape}.")


def lines_of(view: SliceView, dense: nn.Module, net: nn.Module) -> Tensor:
    """The dense gradient of the lines of a view, one per row, shape ``(R, L)``.

    Args:
        view: A slice of ``net``.
        dense: A dense copy of ``net`` after its backward pass.
        net: The network with the slice.
    """
    [name] = [name for name, parameter in net.named_parameters() if parameter is view.stored]
    gradient = dense.get_parameter(name).grad
    assert gradient is not None
    matrix = matrix_of(gradient, view)
    return (matrix.transpose(0, 1) if view.axis == "column" else matrix)[view.indices].flatten(1)


def visited_entries(view: SliceView) -> Tensor:
    """Which entries of the stored parameter the slice covers now, bool, in the shape of the parameter."""
    covered = torch.zeros_like(view.stored, dtype=torch.bool, memory_format=torch.contiguous_format)
    matrix = matrix_of(covered, view)
    (matrix.transpose(0, 1) if view.axis == "column" else matrix)[view.indices] = True
    return covered
