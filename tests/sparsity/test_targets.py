"""Weights that can be pruned, and their storage order."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D as TransformersConv1D

from slicefine_pl.sparsity.targets import find_prunable


class Conv1D(nn.Module):
    """A layer with the class name of transformers' Conv1D that stores its weight as ``(O, I)``."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 7))

    def forward(self, x):
        return x @ self.weight.t()


class Subclass(TransformersConv1D):
    pass


def test_only_transformers_conv1d_is_transposed():
    net = nn.ModuleDict({"foreign": Conv1D(), "own": TransformersConv1D(5, 7), "subclass": Subclass(5, 7)})
    assert {each.name: each.transposed for each in find_prunable(net)} == {"own.weight": True, "subclass.weight": True}
