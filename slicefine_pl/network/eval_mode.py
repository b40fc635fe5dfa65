"""Run a network in eval mode and restore its modes afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(*nets: nn.Module) -> Iterator[None]:
    """Put networks in eval mode; on exit every submodule gets its own mode back.

    A network may mix modes, as frozen batch norms in a network that trains do. ``net.train()`` would lose that.
    """
    modes = [(module, module.training) for net in nets for module in net.modules()]
    try:
        for net in nets:
            net.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
