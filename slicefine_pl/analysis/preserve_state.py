"""Look at a network and leave no trace.

Answers one question: what must be put back after forward and backward passes that are no part of a training run?
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from slicefine_pl.network.eval_mode import eval_mode
from slicefine_pl.slicing.slice import Slice


@contextmanager
def preserve_state(net: nn.Module, parameters: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Put ``net`` in eval mode, record gradients for ``parameters`` alone, and put everything back afterwards.

    Put back are the mode of every module, ``requires_grad`` of every parameter, torch's random generators (of the CPU
    and of the devices the network is on), and what open slices note in a backward pass: the scores of
    ``order="importance"``, and whether a layer's weight was read.  Whoever calls ``autograd.grad`` inside, and not
    ``backward``, leaves ``.grad`` alone as well.

    Args:
        net: The network; its slices may be open.
        parameters: What gradients are wanted for; none are recorded without.
    """
    wanted = list(parameters)
    required = {parameter: parameter.requires_grad for parameter in [*net.parameters(), *wanted]}
    noted = {slice_: (slice_.score, slice_.read_directly) for slice_ in net.modules() if isinstance(slice_, Slice)}
    devices = {parameter.device for parameter in required if parameter.device.type == "cuda"}
    for slice_ in noted:
        slice_.score = None
    for parameter in required:
        parameter.requires_grad_(False)
    for parameter in wanted:
        parameter.requires_grad_(True)
    try:
        with (
            eval_mode(net),
            torch.random.fork_rng(devices),
            torch.inference_mode(False),
            torch.set_grad_enabled(bool(wanted)),
        ):
            yield
    finally:
        for parameter, flag in required.items():
            parameter.requires_grad_(flag)
        for slice_, (score, read_directly) in noted.items():
            slice_.score, slice_.read_directly = score, read_directly
