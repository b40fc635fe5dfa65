"""Check before each optimizer step that the loss and the gradients are finite."""

import warnings
from collections.abc import Iterable

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from slicefine_pl.callbacks.support.optimizer_slices import optimizer_parameters
from slicefine_pl.network.names import shortlist
from slicefine_pl.slicing.distributed.shards import to_local


class NonFiniteCheck:
    """Stop a run before a step with a non-finite loss or gradient, or skip that step.

    Args:
        skip: Whether such steps are skipped.
    """

    def __init__(self, skip: bool) -> None:
        self._skip = skip
        self._skipped = 0
        self._loss: Tensor | None = None

    def record_loss(self, loss: Tensor) -> None:
        """Remember the loss of the backward pass that follows."""
        self._loss = loss.detach()

    def check(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the loss and the gradients, right before the optimizer's step. All processes must call it.

        Raises:
            FloatingPointError: They are not finite, and such steps are not skipped.
        """
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # a loss scaler skips such steps itself
        finite = scaler is not None or all_finite(optimizer_parameters(optimizer), self._loss)
        # Each process has its own loss; all of them must skip the step, or none.
        if trainer.strategy.reduce_boolean_decision(finite):
            return
        message = (
            f"Step {trainer.global_step}: {describe_nonfinite(pl_module, self._loss)};"
            " the weights are still those of the previous step."
        )
        if not self._skip:
            raise FloatingPointError(message + " Lower the learning rate, or pass nonfinite='skip' to skip such steps.")
        optimizer.zero_grad(set_to_none=True)
        self._skipped += 1
        warnings.warn(f"{message} This step is skipped, {self._skipped} so far.", stacklevel=2)


def all_finite(parameters: Iterable[nn.Parameter], loss: Tensor | None) -> bool:
    """Whether the loss and all gradients are finite. Synchronizes with the device once."""
    # Of a sharded gradient this reads the local shard only; the caller combines the answers of all processes.
    gradients = [to_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    gradients = [gradient for gradient in gradients if gradient.numel()]
    # The largest entry, because the 2-norm can overflow in half precision even if every entry is finite.
    largest = torch.nn.utils.get_total_norm(gradients, norm_type=float("inf"))
    finite = torch.isfinite(largest)
    return bool(finite if loss is None else finite & torch.isfinite(loss).all().to(finite.device))


def describe_nonfinite(net: nn.Module, loss: Tensor | None) -> str:
    """Describe the loss, and name the parameters whose gradient is not finite."""
    names = [
        name
        for name, parameter in net.named_parameters()
        if parameter.grad is not None and not torch.isfinite(to_local(parameter.grad)).all()
    ]
    value = "unknown" if loss is None else f"{loss.float().mean().item():g}"
    return f"the loss is {value} and the gradient is not finite in {shortlist(names)}"
