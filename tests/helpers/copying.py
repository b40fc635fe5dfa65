"""Copies of a network by the two ways that users copy one."""

import copy
import io

import torch
from torch import nn

COPIERS = ["deepcopy", "pickle"]


def copied(net: nn.Module, copier: str) -> nn.Module:
    """A copy by ``copy.deepcopy``, or by saving and loading the whole network."""
    if copier == "deepcopy":
        return copy.deepcopy(net)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)
