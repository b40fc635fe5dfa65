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
    names = [name for name, _ in net.named_modules(remove_duplicate=False)]
    places, left_out = dict[str, LoraPlace](), dict[str, str]()
    for name in sliced:
        try:
            _check_shared(net, name)
            places[name] = lora_place(net, name)
        except NotExpressible as error:
            left_out[name] = str(error)
    adapted = {place.module for place in places.values()}
    for name in whole:
        if adapted.intersection(_owners(net, name)):
            left_out[name] = "LoRA adapts the weight of its module, and nothing else in it"
    to_save = [name for name in whole if name not in left_out]
    if store_whole:
        modules = {module for name in left_out for module in _owners(net, name)}
        to_save = [name for name in (*sliced, *whole) if name in to_save or modules.intersection(_owners(net, name))]
        places = {name: place for name, place in places.items() if place.module not in modules}
        left_out = {}
    adapted = {place.module for place in places.values()}
    saved = set[str]()
    for name in to_save:
        try:
            saved.update(_saved(net, name, names, adapted))
        except NotExpressible as error:
            left_out[name] = str(error)
    outermost = saved - {name for name in saved if any(name.startswith(f"{other}.") for other in saved)}
    return LoraPlan(places, [name for name in names if name in outermost], left_out)


def _owners(net: nn.Module, tensor: str) -> list[str]:
    """Names of all modules that own a parameter or buffer, or read it from a module within them."""
    module, _, key = tensor.rpartition(".")
    wanted = getattr(net.get_submodule(module), key)
    return [
        unit(net, name)
        for name, each in net.named_modules(remove_duplicate=False)
        if any(own is wanted for own in (*each._parameters.values(), *each._buffers.values()))
    ]


def _check_shared(net: nn.Module, tensor: str) -> None:
    owners = _owners(net, tensor)
    if len(owners) > 1:
        raise NotExpressible(f"{' and '.join(owners)} share it, and peft does not adapt them as one")


def _saved(net: nn.Module, tensor: str, names: Sequence[str], adapted: set[str]) -> list[str]:
    """The modules that own a tensor, and those that peft stores as well, because it compares the ends of names.

    Raises:
        NotExpressible: LoRA adapts a part of one of them, or it is not a module that can be stored.
    """
    modules = _owners(net, tensor)
    for module in modules:
        if not module or isinstance(net.get_submodule(module), CONTAINERS):
            raise NotExpressible(f"peft stores whole modules, and not parameters of {_kind(net, module)}")
        if any(re.match(rf"(^|.*\.){module}($|\..*)", name) for name in adapted):
            raise NotExpressible(f"peft would store {module} whole, and LoRA adapts a part of it")
    found = [name for name in names if any(name.endswith(module) for module in modules)]
    for name in found:
        if any(f"{other}.".startswith(f"{name}.") or f"{name}.".startswith(f"{other}.") for other in adapted):
            raise NotExpressible(f"peft would store {name} as well, because its name ends alike, and LoRA adapts it")
    return found


def _kind(net: nn.Module, module: str) -> str:
    return f"an {type(net.get_submodule(module)).__name__}" if module else "the network itself"
