"""Restore an optimizer's state from a checkpoint bit for bit.

``Optimizer.load_state_dict`` casts every floating-point tensor of the state to the type of its parameter, although
NAdam, ASGD, transformers' Adafactor and others keep some state in another type. It also splits strings in a state.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map


def wrapped_by(optimizer: Optimizer) -> Iterator[Optimizer]:
    """An optimizer, and those that it wraps, as Lookahead does. One of them has the state."""
    yield optimizer
    for value in vars(optimizer).values():
        if isinstance(value, Optimizer):
            yield from wrapped_by(value)


def has_types_of(module: nn.Module, saved: Mapping[str, Any]) -> bool:
    """Whether the tensors of a module have the same types as the saved tensors of the same names."""
    return all(
        saved[name].dtype == value.dtype
        for name, value in module.state_dict().items()
        if isinstance(value, Tensor) and isinstance(saved.get(name), Tensor)
    )


def restore_types(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Give the state that an optimizer has just loaded the types with which it was saved.

    Args:
        optimizer: The optimizer after ``load_state_dict``. Its parameters must have the types that they had when the
            state was saved.
        saved: The state dict that it has loaded.
    """
    order = (number for group in saved["param_groups"] for number in group["params"])
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    for number, parameter in zip(order, parameters, strict=False):
        for each in wrapped_by(optimizer) if number in saved["state"] else ():
            if parameter in each.state:
                each.state[parameter] = tree_map(_as_saved, each.state[parameter], saved["state"][number])


def _as_saved(loaded: Any, saved: Any) -> Any:
    """A saved value of a state; a tensor is moved to the device of the loaded one."""
    if not isinstance(saved, Tensor):
        return saved
    return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device, copy=True)
