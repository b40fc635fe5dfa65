"""Are the numbers of a step finite, and if not, where are they not?"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from slicefine_pl.slicing.parts import local_of
from slicefine_pl.slicing.targets import some


def all_finite(parameters: Iterable[nn.Parameter], loss: Tensor | None) -> bool:
    """Whether the loss and all gradients are finite; one synchronisation with the device."""
    # Of a sharded gradient each process sees its share; whether all shares are finite is asked of all processes then.
    gradients = [local_of(parameter.grad) for parameter in parameters if parameter.grad is not None]
    gradients = [gradient for gradient in gradients if gradient.numel()]
    # The largest entry, not the 2-norm: that one may overflow in half precision though every entry is finite.
    largest = torch.nn.utils.get_total_norm(gradients, norm_type=float("inf"))
    finite = torch.isfinite(largest)
    return bool(finite if loss is None else finite & torch.isfinite(loss).all().to(finite.device))


def describe_nonfinite(net: nn.Module, loss: Tensor | None) -> str:
    """Say what the loss is and in which parameters the gradient is not finite."""
    guilty = [
        name
        for name, parameter in net.named_parameters()
        if parameter.grad is not None and not torch.isfinite(local_of(parameter.grad)).all()
    ]
    value = "unknown" if loss is None else f"{loss.float().mean().item():g}"
    return f"the loss is {value} and the gradient is not finite in {some(guilty)}"
