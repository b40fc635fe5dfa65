"""Check that the slices, and nothing else, are trained; if not, find the cause."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from slicefine_pl.callbacks.support.nonfinite import NonFiniteCheck
from slicefine_pl.callbacks.support.optimizer_slices import OptimizerSlices, has_gradients, optimizer_parameters
from slicefine_pl.network.names import patterns_of, shortlist
from slicefine_pl.slicing import SliceHandle, SliceView


class TrainingChecks:
    """The checks of one fit, at each backward pass and each optimizer step.

    Args:
        handle: The open slices.
        pl_module: The module.
        max_steps_without_grad: Optimizer steps within which each slice must receive a gradient.
        skip_nonfinite: Whether steps with a non-finite loss or gradient are skipped; otherwise they raise.

    Attributes:
        nonfinite: The check for a non-finite loss or gradient.
    """

    def __init__(
        self, handle: SliceHandle, pl_module: LightningModule, max_steps_without_grad: int, skip_nonfinite: bool
    ) -> None:
        self._handle = handle
        self._pl_module = pl_module
        self._max_steps = max_steps_without_grad
        self.nonfinite = NonFiniteCheck(skip_nonfinite)
        self._trained = self._trained_ids()

    def _trained_ids(self) -> set[int]:
        slices = (view.parameter for view in self._handle)
        return {id(parameter) for parameter in (*slices, *self._handle.fully_trained.values())}

    def check_parameters(self) -> None:
        """Check that only slices, and the parameters trained in full, require a gradient.

        Raises:
            MisconfigurationException: Another parameter requires a gradient.
        """
        known = self._trained_ids() | {id(view.base) for view in self._handle}
        named = self._pl_module.named_parameters()
        others = [name for name, each in named if each.requires_grad and id(each) not in known]
        if others:
            raise MisconfigurationException(
                f"{shortlist(others)} require a gradient but are neither slices nor in also_train: something created or"
                " unfroze them after the slices were opened. Build the model in __init__, setup or configure_model, and"
                " do not combine SliceFineCallback with callbacks that unfreeze parameters."
            )

    def before_backward(self, loss: Tensor) -> None:
        """Check that the loss depends on the slices as they are.

        Raises:
            MisconfigurationException: It does not.
        """
        if unsynced := self._handle.unsynced():
            raise MisconfigurationException(
                f"The slices of {shortlist(unsynced)} changed after the last optimizer step, and the forward pass did"
                " not use the new values: a compiled network, and layers in eval mode, compute with the weights of"
                " that step. Optimizers that evaluate several times per step (LBFGS, SAM) need train mode and no"
                " torch.compile."
            )
        if not loss.requires_grad:
            names = [view.name for view in self._handle]
            check_requires_grad(self._handle, names)
            if self._handle.no_grad_reasons(names):
                raise_missing_gradient(self._handle, names, self._max_steps)
        self.nonfinite.record_loss(loss)

    def before_step(self, trainer: Trainer, slices: OptimizerSlices) -> None:
        """Check the gradients right before an optimizer's step.

        Raises:
            MisconfigurationException: A slice receives no gradient, or another parameter would be changed.
            FloatingPointError: The loss or a gradient is not finite.
        """
        if frozen := slices.frozen():
            check_requires_grad(self._handle, frozen)
        if not has_gradients(slices.optimizer):
            return  # training_step returned None
        if slices.updates_others_than(self._trained):
            self.check_parameters()
        self.check_gradients(slices)
        self.nonfinite.check(trainer, self._pl_module, slices.optimizer)

    def check_gradients(self, slices: OptimizerSlices) -> None:
        """Check that every slice has received a gradient, once that is due.

        Raises:
            MisconfigurationException: A slice has not.
        """
        slices.without_gradient = self._handle.without_gradient(slices.without_gradient)
        if slices.without_gradient and slices.steps + 1 - slices.first_step >= self._max_steps:
            raise_missing_gradient(self._handle, slices.without_gradient, self._max_steps)


def slices_by_optimizer(handle: SliceHandle, optimizers: Sequence[Optimizer]) -> list[list[SliceView]]:
    """Return the slices that each optimizer updates.

    Raises:
        MisconfigurationException: No optimizer holds a slice or a parameter trained in full, or several hold a slice.
    """
    held = [{id(parameter) for parameter in optimizer_parameters(optimizer)} for optimizer in optimizers]
    times = Counter(each for ids in held for each in ids)
    if shared := [view.name for view in handle if times[id(view.parameter)] > 1]:
        raise MisconfigurationException(
            f"Several optimizers hold the slices of {shortlist(shared)}, and a slice moves with the steps of one; give"
            " each optimizer parameters of its own."
        )
    slices = [f"the slice of {view.name}" for view in handle if id(view.parameter) not in times]
    whole = [name for name, parameter in handle.fully_trained.items() if id(parameter) not in times]
    if (slices or whole) and any(id(view.parameter) in times for view in handle):
        raise MisconfigurationException(
            f"No optimizer holds {shortlist(slices + whole)}, although one holds other slices: the parameter groups of"
            " configure_optimizers leave these out. Put every parameter that requires a gradient into a group; a"
            " parameter without weight decay belongs into a group with weight_decay=0."
        )
    if slices or whole:
        raise MisconfigurationException(
            f"No optimizer holds {shortlist(slices + whole)}. Collect the parameters in configure_optimizers, from"
            " self.parameters() or from those that require a gradient: a list that is made earlier, for instance in"
            " __init__, lacks the slices."
        )
    return [[view for view in handle if id(view.parameter) in ids] for ids in held]


def check_requires_grad(handle: SliceHandle, names: Iterable[str]) -> None:
    """Check that slices still require a gradient.

    Raises:
        MisconfigurationException: Some do not.
    """
    wanted = set(names)
    frozen = [view.name for view in handle if view.name in wanted and not view.parameter.requires_grad]
    if frozen:
        raise MisconfigurationException(
            f"The slices of {shortlist(frozen)} do not require a gradient any more: something froze them after they"
            " were opened, such as requires_grad_(False), freeze() or a callback. Remove it; SliceFineCallback freezes"
            " everything that it does not train."
        )


def raise_missing_gradient(handle: SliceHandle, names: Collection[str], steps: int) -> None:
    """Explain why slices received no gradient, as far as the cause can be seen.

    Args:
        handle: The open slices.
        names: Names of the slices without a gradient.
        steps: Optimizer steps within which each slice must receive a gradient.

    Raises:
        MisconfigurationException: Always.
    """
    check_requires_grad(handle, names)
    when = "at the first step" if steps == 1 else f"in the first {steps} steps"
    no_grad_reasons = handle.no_grad_reasons(names)
    if checkpointed := [name for name in no_grad_reasons if no_grad_reasons[name] == "checkpoint"]:
        raise MisconfigurationException(
            f"The slices of {shortlist(checkpointed)} received no gradient {when}: the layers run in"
            " torch.utils.checkpoint with use_reentrant=True, whose inputs do not require a gradient, because all"
            " earlier parameters are frozen. Pass use_reentrant=False (transformers:"
            " gradient_checkpointing_enable({'use_reentrant': False})), or have the inputs require a gradient"
            " (transformers: enable_input_require_grads())."
        )
    if no_grad_reasons:
        raise MisconfigurationException(
            f"The slices of {shortlist(no_grad_reasons)} received no gradient {when}: the layers run where no gradient"
            " is recorded, as under torch.no_grad(). Run them with gradients, or leave them out with"
            f" {_exclude(handle, no_grad_reasons)}."
        )
    raise MisconfigurationException(
        f"The slices of {shortlist(names)} received no gradient {when}: the network does not use these layers, or reads"
        f" their weights without calling the module. Leave them out with {_exclude(handle, names)}; if layers take"
        " turns (experts, towers, LayerDrop), raise max_steps_without_grad."
    )


def _exclude(handle: SliceHandle, names: Iterable[str]) -> str:
    """The argument that leaves slices out: ``exclude=r'...'``, or a list of patterns."""
    patterns = [f"r'{each}'" for each in patterns_of(names, [*(view.name for view in handle), *handle.skipped])]
    return f"exclude={patterns[0]}" if len(patterns) == 1 else f"exclude=[{', '.join(patterns)}]"
