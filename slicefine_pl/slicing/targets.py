"""Which layers of a network are sliced, which parameters are trained whole, and why the rest is left out."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TypeVar

from torch import nn

from slicefine_pl.slicing.heads import Head, find_heads
from slicefine_pl.slicing.layer import SlicedLayer
from slicefine_pl.slicing.linear import sliced_kind

T = TypeVar("T")

Patterns = str | Sequence[str]

OUTPUT_HEAD = "output head"
FROZEN = "frozen already"
SUPPORTED = "torch.nn.Linear (outside torch.nn.MultiheadAttention) and transformers' Conv1D"


@dataclass
class Targets:
    """The answer of :func:`find_targets`.

    Attributes:
        layers: Module name to dense module and the kind of sliced layer that will stand in for it.
        trained: Parameter name to parameter, for those trained whole.
        skipped: Name of a weight-bearing module that is left out, and the reason.
        notice: What the user should hear once, or ``None``.
    """

    layers: dict[str, tuple[nn.Module, type[SlicedLayer]]] = field(default_factory=dict)
    trained: dict[str, nn.Parameter] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notice: str | None = None


def find_targets(net: nn.Module, targets: Patterns | None, also_train: Patterns | None) -> Targets:
    """Decide what is sliced and what is trained whole.

    Args:
        net: The network; not changed.
        targets: Regular expressions searched in module names; ``None`` takes every supported layer but output heads,
            tied weights, frozen ones and what is trained whole.
        also_train: Regular expressions searched in parameter names; ``None`` takes the new output heads.

    Raises:
        ValueError: If a pattern matches nothing or a layer that cannot be sliced, or the network is sliced already.
    """
    open_already = [name for name, module in net.named_modules() if isinstance(module, SlicedLayer)]
    if open_already:
        raise ValueError(f"{some(open_already)} are already sliced; close() the handle of these slices first.")
    heads = find_heads(net)
    found = Targets(trained=_trained_whole(net, heads, also_train))
    whole = {id(parameter) for parameter in found.trained.values()}
    in_heads = {id(parameter) for head in heads for parameter in head.module.parameters()}
    owners = Counter(id(parameter) for module in net.modules() for parameter in module._parameters.values())
    tied = {owned for owned, count in owners.items() if count > 1}
    frozen = {id(parameter) for parameter in net.parameters() if not parameter.requires_grad}
    reasons = {
        name: _obstacle(
            module, {"its weight is tied": tied, "trained whole": whole, OUTPUT_HEAD: in_heads, FROZEN: frozen}
        )
        for name, module in _weight_bearers(net)
    }
    modules = dict(net.named_modules())
    if targets is None:
        chosen = [name for name, reason in reasons.items() if reason is None]
    else:
        matched = _matching("targets", targets, modules, "module")
        chosen = [name for name in reasons if name in matched]
        _refuse_unsupported(targets, chosen, reasons)
    for name in chosen:
        kind = sliced_kind(modules[name])
        assert kind is not None  # _obstacle has said so
        found.layers[name] = (modules[name], kind)
    found.skipped = {name: reason for name, reason in reasons.items() if reason is not None and name not in chosen}
    if not found.layers:
        raise ValueError(
            f"targets={targets!r} meets no layer that can be sliced; supported are {SUPPORTED}."
            f" This network has {some(_explained(found.skipped))}."
        )
    found.notice = _head_notice(net, found, also_train, frozen_heads=[head.name for head in heads])
    return found


def _trained_whole(net: nn.Module, heads: list[Head], also_train: Patterns | None) -> dict[str, nn.Parameter]:
    """The parameters that ``also_train`` names, or those of the new heads that are not frozen."""
    if also_train is not None:
        return _matching("also_train", also_train, dict(net.named_parameters()), "parameter")
    new = (head.module.named_parameters(prefix=head.name) for head in heads if not head.pretrained)
    return {name: parameter for name, parameter in chain.from_iterable(new) if parameter.requires_grad}


def _weight_bearers(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that itself owns a matrix or a larger tensor, by name."""
    for name, module in net.named_modules():
        if any(parameter is not None and parameter.ndim > 1 for parameter in module._parameters.values()):
            yield name, module


def _obstacle(module: nn.Module, excluded: Mapping[str, set[int]]) -> str | None:
    """Why a module is not sliced by default; ``None`` if it is.

    Args:
        module: Owner of a weight.
        excluded: Reasons, each with the ids of the parameters it holds for.
    """
    if sliced_kind(module) is None:
        return f"{type(module).__name__} is not supported"
    weight = id(module.get_parameter("weight"))
    return next((reason for reason, parameters in excluded.items() if weight in parameters), None)


def _refuse_unsupported(targets: Patterns, chosen: list[str], reasons: dict[str, str | None]) -> None:
    """Named targets must all be served; a head, or a frozen layer, is no obstacle once the user has asked for it."""
    refused = {name: reasons[name] for name in chosen if reasons[name] not in (None, OUTPUT_HEAD, FROZEN)}
    if refused:
        raise ValueError(
            f"targets={targets!r} matches {some(_explained(refused))};"
            f" supported are {SUPPORTED}. Narrow the pattern so that it leaves these out."
        )


def _matching(argument: str, patterns: Patterns, named: Mapping[str, T], noun: str) -> dict[str, T]:
    """The entries of ``named`` whose name any pattern is found in; every pattern must be found in one."""
    matches: dict[str, T] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            hits = {name: value for name, value in named.items() if re.search(pattern, name)}
        except re.error as error:
            raise ValueError(f"{argument}={pattern!r} is no regular expression: {error}.") from error
        if not hits:
            raise ValueError(
                f"{argument}={pattern!r} matches no {noun} name; this network has {some(filter(None, named))}."
            )
        matches.update(hits)
    return matches


def _head_notice(net: nn.Module, found: Targets, also_train: Patterns | None, frozen_heads: list[str]) -> str | None:
    if also_train is not None:
        trained = tuple(found.trained)
        frozen = [head for head in frozen_heads if not any(name.startswith(head + ".") for name in trained)]
        return f"also_train={also_train!r} leaves the output head {some(frozen)} frozen." if frozen else None
    if frozen_heads:
        return None
    last = list(found.layers)[-3:]
    return (
        "No new output head was found, so only slices are trained. If the network has one, name it:"
        f" also_train={last[-1]!r}, for instance (the last layers are {some(last)})."
    )


def _explained(reasons: Mapping[str, str | None]) -> list[str]:
    return [f"{name} ({reason})" for name, reason in reasons.items()]


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few names of many, for a message."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return (", ".join(islice(listed, most)) or "none") + more
