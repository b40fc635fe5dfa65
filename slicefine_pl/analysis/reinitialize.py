"""A network without its pretraining: the control for every claim about pretrained weights."""

import copy
from typing import TypeVar

import torch
from torch import nn

N = TypeVar("N", bound=nn.Module)


def reinitialize(net: N, seed: int) -> N:
    """A copy of a network whose parameters are all random again.

    Every layer is initialised as torch does by default, which is not always the way its library would; parameters of
    modules that know no initialisation, such as position embeddings, become normal numbers of their own spread.

    Args:
        net: The network; not changed, and neither are torch's generators.
        seed: Of the random numbers.
    """
    made = copy.deepcopy(net)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in made.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
                continue
            for parameter in module.parameters(recurse=False):
                spread = parameter.std() if parameter.numel() > 1 else parameter.abs().mean()
                parameter.copy_(torch.randn(parameter.shape).to(parameter) * spread)
    return made
