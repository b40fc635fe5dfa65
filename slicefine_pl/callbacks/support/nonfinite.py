"""Check before each optimizer step that the loss and the gradients are finite."""

import warnings
from collections.abc import Iterable, Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from slicefine_pl.callbacks.support.optimizer_slices import optimizer_parameters
from slicefine_pl.network.names import shortlist
from slicefine_pl.slicing.distributed.shards import to_local


class NonFiniteCheck:
    """Stop a run before a step with a non-finite loss or gradient, or skip that step.

    If the weights themselves are not finite, every later loss is not either, so the run stops in both cases.

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
            FloatingPointError: They are not finite, and such steps are not skipped; or the weights are not finite.
        """
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # a loss scaler skips such steps itself
        finite = scaler is not None or all_finite(optimizer_parameters(optimizer), self._loss)
        # Each process has its own loss; all of them must skip the step, or none.
        if trainer.strategy.reduce_boolean_decision(finite):
            return
        step = trainer.global_step
        broken = nonfinite_names(pl_module.named_parameters())
        if not trainer.strategy.reduce_boolean_decision(not broken):
            raise FloatingPointError(describe_weights(step, broken))
        what = describe_nonfinite(pl_module, self._loss)
        message = f"Step {step}: {what}; the weights are still those of the previous step."
        if not self._skip:
            raise FloatingPointError(message + " Lower the learning rate, or pass nonfinite='skip' to skip such steps.")
        optimizer.zero_grad(set_to_none=True)
        self._skipped += 1
        if self._skipped == 1:
            warnings.warn(f"{message} This step is skipped; the end of the run says how many were.", stacklevel=2)

    def report(self) -> None:
        """Warn how many steps were skipped, if any were."""
        if self._skipped:
            steps = "1 step was" if self._skipped == 1 else f"{self._skipped} steps were"
            rank_zero_warn(f"{steps} skipped, because the loss or a gradient was not finite.")


def all_finite(parameters: Iterable[nn.Parameter], loss: Tensor | None) -> bool:
    """Whether the loss and all gradients are finite. Synchronizes with the device once."""
    # Of a sharded gradient this reads the local shard only; the caller combines the answers of all processes.
    gradients = [to_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    gradients = [gradient for gradient in gradients if gradient.numel()]
    # The largest entry, because the 2-norm can overflow in half precision even if every entry is finite.
    largest = torch.nn.utils.get_total_norm(gradients, norm_type=float("inf"))
    finite = torch.isfinite(largest)
    return bool(finite if loss is None else finite & torch.isfinite(loss).all().to(finite.device))


def nonfinite_names(named: Iterable[tuple[str, Tensor | None]]) -> list[str]:
    """Return the names of the tensors with an entry that is not finite, of which a process may store a shard."""
    return [name for name, each in named if each is not None and not torch.isfinite(to_local(each)).all()]


def describe_nonfinite(net: nn.Module, loss: Tensor | None) -> str:
    """Describe the loss, and name the parameters whose gradient is not finite."""
    value = "unknown" if loss is None else f"{loss.float().mean().item():g}"
    names = nonfinite_names((name, parameter.grad) for name, parameter in net.named_parameters())
    gradients = f"the gradient is not finite in {shortlist(names)}" if names else "all gradients here are finite"
    return f"the loss is {value} and {gradients}"


def describe_weights(step: int, names: Sequence[str]) -> str:
    """Describe weights that are not finite.

    Args:
        step: Optimizer steps so far.
        names: Names of the parameters; empty if other processes have them.
    """
    where = shortlist(names) if names else "parameters of other processes"
    if not step:
        return f"The weights are not finite before the first step: {where}. Load other weights."
    return (
        f"The weights themselves are not finite since step {step - 1}: {where}. No later step can"
        " repair them. Lower the learning rate. With weights of half precision, also raise the optimizer's"
        " eps (Adam's default of 1e-8 is 0 in float16), or pass slice_dtype='float32'."
    )
