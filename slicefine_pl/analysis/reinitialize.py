"""Copy a network with random weights, as a control for claims about pretrained weights."""

import copy
from typing import TypeVar

import torch
from torch import nn

N = TypeVar("N", bound=nn.Module)


def reinitialize(net: N, seed: int) -> N:
    """Return a copy of a network in which all parameters are random.

    Layers with ``reset_parameters`` use it; that is torch's default initialization, not always the one of the model's
    library. Other parameters, such as position embeddings, get normal numbers with their own standard deviation.

    Args:
        net: The network; not changed. Torch's random generators are not changed either.
        seed: Seed of the random numbers.
    """
    random_net = copy.deepcopy(net)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in random_net.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
                continue
            for parameter in module.parameters(recurse=False):
                spread = parameter.std() if parameter.numel() > 1 else parameter.abs().mean()
                parameter.copy_(torch.randn(parameter.shape).to(parameter) * spread)
    return random_net
