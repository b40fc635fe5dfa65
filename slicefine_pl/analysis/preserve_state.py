"""Restore a network after forward and backward passes that are not part of training."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from slicefine_pl.network.eval_mode import eval_mode
from slicefine_pl.slicing.slice import Slice


@contextmanager
def preserve_state(net: nn.Module, parameters: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Put ``net`` in eval mode with gradients for ``parameters`` only, and restore its state on exit.

    Restored are:

    - the mode of every module and ``requires_grad`` of every parameter;
    - torch's random generators of the CPU and of the network's GPUs;
    - the state that open slices update in a backward pass: the scores of ``order="importance"``, and whether other code
      read a layer's weight.

    ``.grad`` is not restored; use ``torch.autograd.grad`` instead of ``backward()``.

    Args:
        net: The network; its slices may be open.
        parameters: Parameters that need gradients. Without any, gradients are disabled.
    """
    chosen = list(parameters)
    required = {parameter: parameter.requires_grad for parameter in [*net.parameters(), *chosen]}
    slice_state = {
        slice_: (slice_.score, slice_.read_directly) for slice_ in net.modules() if isinstance(slice_, Slice)
    }
    devices = {parameter.device for parameter in required if parameter.device.type == "cuda"}
    for slice_ in slice_state:
        slice_.score = None
    for parameter in required:
        parameter.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        with (
            eval_mode(net),
            torch.random.fork_rng(devices),
            torch.inference_mode(False),
            torch.set_grad_enabled(bool(chosen)),
        ):
            yield
    finally:
        for parameter, flag in required.items():
            parameter.requires_grad_(flag)
        for slice_, (score, read_directly) in slice_state.items():
            slice_.score, slice_.read_directly = score, read_directly
