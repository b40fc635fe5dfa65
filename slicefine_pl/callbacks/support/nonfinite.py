"""Are the numbers of a step finite, where are they not, and what happens then?"""

import warnings
from collections.abc import Iterable

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from slicefine_pl.callbacks.support.optimizer_slices import parameters_of
from slicefine_pl.network.names import shortlist
from slicefine_pl.slicing.distributed.shards import to_local


class NonFiniteCheck:
    """Stops a run before a step whose numbers are not finite, or drops that step.

    Args:
        skip: Whether such steps are dropped.
    """

    def __init__(self, skip: bool) -> None:
        self._skip = skip
        self.begin()

    def begin(self) -> None:
        """Start to count dropped steps."""
        self._dropped = 0
        self._loss: Tensor | None = None

    def see(self, loss: Tensor) -> None:
        """Remember the loss of the backward pass to come."""
        self._loss = loss.detach()

    def check(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at the loss and gradients, right before the optimizer's step; all processes call it.

        Raises:
            FloatingPointError: They are not finite, and such steps are not dropped.
        """
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # which drops such steps itself
        finite = scaler is not None or all_finite(parameters_of(optimizer), self._loss)
        # A loss is one process's own; all of them must drop the step, or none.
        if trainer.strategy.reduce_boolean_decision(finite):
            return
        message = (
            f"Step {trainer.global_step}: {describe_nonfinite(pl_module, self._loss)};"
            " the weights are still those of the step before."
        )
        if not self._skip:
            raise FloatingPointError(message + " Lower the learning rate, or pass nonfinite='skip' to drop such steps.")
        optimizer.zero_grad(set_to_none=True)
        self._dropped += 1
        warnings.warn(f"{message} This step is dropped, {self._dropped} so far.", stacklevel=2)


def all_finite(parameters: Iterable[nn.Parameter], loss: Tensor | None) -> bool:
    """Whether the loss and all gradients are finite; one synchronisation with the device."""
    # Of a sharded gradient each process sees its share; whether all shares are finite is asked of all processes then.
    gradients = [to_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
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
        if parameter.grad is not None and not torch.isfinite(to_local(parameter.grad)).all()
    ]
    value = "unknown" if loss is None else f"{loss.float().mean().item():g}"
    return f"the loss is {value} and the gradient is not finite in {shortlist(guilty)}"
