"""An optimizer's state comes back from a checkpoint as it was saved, to the last bit.

``Optimizer.load_state_dict`` casts every floating-point tensor of the state to the type of its parameter, and NAdam,
ASGD, transformers' Adafactor and others keep some in another type on purpose.  It also takes a text apart that a state
holds.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map


def has_types_of(module: nn.Module, saved: Mapping[str, Any]) -> bool:
    """Whether the tensors of a module have the types of those that were saved under their names."""
    return all(
        saved[name].dtype == value.dtype
        for name, value in module.state_dict().items()
        if isinstance(value, Tensor) and isinstance(saved.get(name), Tensor)
    )


def keep_saved_types(optimizer: Optimizer) -> None:
    """Have an optimizer keep the types of all that it loads from now on.

    Its parameters must have the types that they had when the state was saved.
    """
    loading: list[Mapping[int, Any]] = []

    def look(_: Optimizer, saved: dict[str, Any]) -> None:
        order = (number for group in saved["param_groups"] for number in group["params"])
        loading.append({position: saved["state"].get(number) for position, number in enumerate(order)})

    def put_back(own: Optimizer) -> None:
        parameters = [parameter for group in own.param_groups for parameter in group["params"]]
        for position, saved in loading.pop().items():
            if saved is not None:
                loaded = own.state[parameters[position]]
                own.state[parameters[position]] = tree_map(_on_its_device, loaded, saved)

    optimizer.register_load_state_dict_pre_hook(look)
    optimizer.register_load_state_dict_post_hook(put_back)


def _on_its_device(loaded: Any, saved: Any) -> Any:
    """The saved leaf of a state; a tensor on the device where torch has put it."""
    if not isinstance(saved, Tensor):
        return saved
    return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device, copy=True)
