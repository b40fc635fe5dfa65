"""An optimizer's state comes back from a checkpoint as it was saved, to the last bit.

``Optimizer.load_state_dict`` casts every floating-point tensor of the state to the type of its parameter, and NAdam,
ASGD, transformers' Adafactor and others keep some in another type on purpose.  It also takes texts in a state apart.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map


def wrapped_by(optimizer: Optimizer) -> Iterator[Optimizer]:
    """An optimizer, and those that it wraps, as Lookahead does: one of them holds the state."""
    yield optimizer
    for value in vars(optimizer).values():
        if isinstance(value, Optimizer):
            yield from wrapped_by(value)


def has_types_of(module: nn.Module, saved: Mapping[str, Any]) -> bool:
    """Whether the tensors of a module have the types of those that were saved under their names."""
    return all(
        saved[name].dtype == value.dtype
        for name, value in module.state_dict().items()
        if isinstance(value, Tensor) and isinstance(saved.get(name), Tensor)
    )


def restore_types(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Give the state that an optimizer has just loaded the types it was saved with.

    Args:
        optimizer: After ``load_state_dict``; its parameters have the types that they had when the state was saved.
        saved: What it has loaded.
    """
    order = (number for group in saved["param_groups"] for number in group["params"])
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    for number, parameter in zip(order, parameters, strict=False):
        for each in wrapped_by(optimizer) if number in saved["state"] else ():
            if parameter in each.state:
                each.state[parameter] = tree_map(_as_saved, each.state[parameter], saved["state"][number])


def _as_saved(loaded: Any, saved: Any) -> Any:
    """The saved leaf of a state; a tensor on the device where torch has put it."""
    if not isinstance(saved, Tensor):
        return saved
    return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device, copy=True)
