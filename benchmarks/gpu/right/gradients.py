"""Gradients of slices against dense float64."""

import copy

import torch
from torch import nn

from benchmarks.harness.results import Row
from slicefine_pl.slicing import slice_model


def linear_columns(device: str) -> Row:
    """The gradient of a column slice is that of full training in float64, in the same columns."""
    net = nn.Sequential(nn.Linear(67, 45)).to(device)
    x = torch.randn(33, 67, device=device)
    dense = copy.deepcopy(net).double()
    dense(x.double()).square().sum().backward()
    handle = slice_model(net, rank=8, targets="^0$", also_train=())
    net(x).square().sum().backward()
    [view] = handle
    weight = dense.get_submodule("0").get_parameter("weight")
    assert view.parameter.grad is not None
    assert weight.grad is not None
    expected = weight.grad[:, view.indices].T  # a line of the slice per row
    error = (view.parameter.grad.double() - expected).abs().max() / weight.grad.abs().max()
    assert error < 1e-5, (
        f"The gradient differs from float64 by {error:.1e} of its largest entry; at most 1e-5 is rounding."
    )
    return {"error": float(error)}
