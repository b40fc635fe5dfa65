"""Record what a layer receives during forward passes, such as the features that a head classifies."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def record_inputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the first positional input of every call of a layer.

    Args:
        layer: Layer of a network that runs inside the ``with`` block.

    Yields:
        List of detached inputs, one per call, on the device and in the type of the forward pass. The caller may clear
        it between batches.
    """
    inputs: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    try:
        yield inputs
    finally:
        hook.remove()
