"""Is what shall be trained, and nothing else, really trained?  If not, which of the possible causes is it?"""

from collections import Counter
from collections.abc import Collection, Iterable

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from slicefine_pl.network.names import shortlist
from slicefine_pl.slicing import SliceHandle


def check_optimizers(handle: SliceHandle, owned: Collection[int]) -> None:
    """The optimizers must hold all that is to be trained, and of slices each its own.

    Args:
        handle: The open slices.
        owned: Ids of the parameters of all optimizers, with repetitions.

    Raises:
        MisconfigurationException: They do not.
    """
    times = Counter(owned)
    if shared := [view.name for view in handle if times[id(view.parameter)] > 1]:
        raise MisconfigurationException(
            f"Several optimizers hold the slices of {shortlist(shared)}, and a slice moves with the steps of one; give"
            " each optimizer parameters of its own."
        )
    slices = [f"the slice of {view.name}" for view in handle if id(view.parameter) not in times]
    whole = [name for name, parameter in handle.fully_trained.items() if id(parameter) not in times]
    if slices or whole:
        raise MisconfigurationException(
            f"No optimizer holds {shortlist(slices + whole)}. Collect the parameters in configure_optimizers, from"
            " self.parameters() or from those that require a gradient: what is collected earlier, for instance in"
            " __init__, lacks the slices."
        )


def check_unexpected_trainable(handle: SliceHandle, named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Nothing may be trained that the handle does not know of.

    Args:
        handle: The open slices.
        named: Parameters of the module, by name.

    Raises:
        MisconfigurationException: A parameter requires a gradient, and is neither a slice nor trained whole.
    """
    known = {id(view.parameter) for view in handle} | {id(parameter) for parameter in handle.fully_trained.values()}
    strays = [name for name, parameter in named if parameter.requires_grad and id(parameter) not in known]
    if strays:
        raise MisconfigurationException(
            f"{shortlist(strays)} require a gradient but are neither slices nor in also_train: something made or"
            " unfroze them after the slices were opened. Build the model in __init__, setup or configure_model, and do"
            " not combine SliceFineCallback with callbacks that unfreeze parameters."
        )


def check_requires_grad(handle: SliceHandle, names: Iterable[str]) -> None:
    """Slices must still require the gradient with which they were opened.

    Raises:
        MisconfigurationException: Some do not.
    """
    wanted = set(names)
    frozen = [view.name for view in handle if view.name in wanted and not view.parameter.requires_grad]
    if frozen:
        raise MisconfigurationException(
            f"The slices of {shortlist(frozen)} do not require a gradient any more: something froze them after they"
            " were opened, such as requires_grad_(False), freeze() or a callback. Take it out, as SliceFineCallback"
            " freezes all that it does not train."
        )


def raise_missing_gradient(handle: SliceHandle, names: Collection[str], steps: int) -> None:
    """Say why slices received no gradient, as far as it can be seen.

    Args:
        handle: The open slices.
        names: Those without a gradient.
        steps: Optimizer steps within which each should have received one.

    Raises:
        MisconfigurationException: Always.
    """
    check_requires_grad(handle, names)
    when = "at the first step" if steps == 1 else f"in the first {steps} steps"
    unrecorded = handle.no_grad_reasons(names)
    if checkpointed := [name for name in unrecorded if unrecorded[name] == "checkpoint"]:
        raise MisconfigurationException(
            f"The slices of {shortlist(checkpointed)} received no gradient {when}: the layers run in"
            " torch.utils.checkpoint with use_reentrant=True, whose inputs do not require a gradient, as all before"
            " them is frozen. Pass use_reentrant=False (transformers:"
            " gradient_checkpointing_enable({'use_reentrant': False})), or have the inputs require a gradient"
            " (transformers: enable_input_require_grads())."
        )
    if unrecorded:
        raise MisconfigurationException(
            f"The slices of {shortlist(unrecorded)} received no gradient {when}: the layers run where no gradient is"
            " recorded, as under torch.no_grad(). Have them run with gradients, or leave them out with targets that"
            " name the others."
        )
    raise MisconfigurationException(
        f"The slices of {shortlist(names)} received no gradient {when}: the network does not use these layers, or"
        " reaches their weights past the module. Leave them out, for instance with targets that name the others; if"
        " layers take turns (experts, towers, LayerDrop), raise max_steps_without_grad."
    )


def check_loss_requires_grad(handle: SliceHandle, steps: int) -> None:
    """Say why a loss does not require a gradient, if the slices show it; torch says so, but not why.

    Args:
        handle: The open slices.
        steps: See :func:`raise_missing_gradient`.

    Raises:
        MisconfigurationException: The slices are frozen, or their layers ran without recording gradients.
    """
    names = [view.name for view in handle]
    check_requires_grad(handle, names)
    if handle.no_grad_reasons(names):
        raise_missing_gradient(handle, names, steps)
