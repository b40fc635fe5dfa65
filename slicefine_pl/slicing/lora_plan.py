"""Which part of an adapter each trained tensor goes to: LoRA of a module, a module stored whole, or none."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from slicefine_pl.slicing.lora_layers import LoraPlace, NotExpressible, lora_place, unit

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True)
class LoraPlan:
    """Where each trained tensor goes.

    Attributes:
        places: Where LoRA adapts a sliced weight, by its name.
        saved: Modules to store whole, peft's ``modules_to_save``.
        left_out: For each tensor that goes nowhere, why.
    """

    places: dict[str, LoraPlace]
    saved: list[str]
    left_out: dict[str, str]


def lora_plan(net: nn.Module, sliced: Sequence[str], whole: Sequence[str], store_whole: bool) -> LoraPlan:
    """Plan an adapter.

    Args:
        net: The base.
        sliced: Names of the weights of which lines were trained.
        whole: Names of the parameters that were trained whole, and of buffers that changed.
        store_whole: Whether to store modules whole that LoRA cannot express.
    """
    places, refused = _places(net, sliced)
    adapted = {place.module for place in places.values()}
    inside = [name for name in whole if adapted.intersection(_owners(net, name))]
    refused |= dict.fromkeys(inside, "LoRA adapts the weight of its module, and nothing else in it")
    instead = {module for name in refused for module in _owners(net, name)} if store_whole else set()
    places = {name: place for name, place in places.items() if place.module not in instead}
    to_save = [name for name in (*sliced, *whole) if instead.intersection(_owners(net, name))]
    to_save += [name for name in whole if name not in refused]
    saved, unsaved = _modules(net, to_save, {place.module for place in places.values()})
    left_out = {name: why for name, why in (refused | unsaved).items() if not saved.issuperset(_owners(net, name))}
    outermost = [name for name in saved if not any(name.startswith(f"{other}.") for other in saved)]
    return LoraPlan(places, _in_order(net, outermost), left_out)


def _places(net: nn.Module, sliced: Sequence[str]) -> tuple[dict[str, LoraPlace], dict[str, str]]:
    """Where LoRA adapts weights, and why it does not adapt others."""
    places, refused = dict[str, LoraPlace](), dict[str, str]()
    for name in sliced:
        try:
            if len(owners := _owners(net, name)) > 1:
                raise NotExpressible(f"{' and '.join(owners)} share it, and peft does not adapt them as one")
            places[name] = lora_place(net, name)
        except NotExpressible as error:
            refused[name] = str(error)
    return places, refused


def _modules(net: nn.Module, tensors: Sequence[str], adapted: set[str]) -> tuple[set[str], dict[str, str]]:
    """The modules to store whole for tensors, and why others cannot be stored in this way."""
    saved, refused = set[str](), dict[str, str]()
    for name in tensors:
        try:
            saved.update(_stored_for(net, name, adapted))
        except NotExpressible as error:
            refused[name] = str(error)
    return saved, refused


def _stored_for(net: nn.Module, tensor: str, adapted: set[str]) -> list[str]:
    """The modules that own a tensor, and those that peft stores as well, because it compares the ends of names.

    Raises:
        NotExpressible: LoRA adapts a part of one of them, or it is not a module that can be stored.
    """
    modules = _owners(net, tensor)
    for module in modules:
        if not module:
            raise NotExpressible("it belongs to the network itself, and peft stores modules within a network")
        if isinstance(net.get_submodule(module), CONTAINERS):
            raise NotExpressible("it belongs to a list, and peft stores modules with a forward of their own")
        if any(re.match(rf"(^|.*\.){module}($|\..*)", name) for name in adapted):
            raise NotExpressible(f"peft would store {module} whole, and LoRA adapts a part of it")
    names = [name for name, _ in net.named_modules(remove_duplicate=False)]
    found = [name for name in names if any(name.endswith(module) for module in modules)]
    for name in found:
        if any(f"{other}.".startswith(f"{name}.") or f"{name}.".startswith(f"{other}.") for other in adapted):
            raise NotExpressible(f"peft would store {name} as well, because its name ends alike, and LoRA adapts it")
    return found


def _owners(net: nn.Module, tensor: str) -> list[str]:
    """Names of all modules that own a parameter or buffer, or read it from a module within them."""
    module, _, key = tensor.rpartition(".")
    wanted = getattr(net.get_submodule(module), key)
    found = [
        unit(net, name)
        for name, each in net.named_modules(remove_duplicate=False)
        if any(own is wanted for own in (*each._parameters.values(), *each._buffers.values()))
    ]
    return list(dict.fromkeys(found))


def _in_order(net: nn.Module, modules: Sequence[str]) -> list[str]:
    return [name for name, _ in net.named_modules(remove_duplicate=False) if name in modules]
