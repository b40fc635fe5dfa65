"""Which layers of a network are sliced, which parameters are trained whole, and why the rest is left out."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain

from torch import nn

from slicefine_pl.network.heads import Head, find_heads
from slicefine_pl.network.layers import tied_parameters
from slicefine_pl.network.names import NamePatterns, match_names, shortlist
from slicefine_pl.slicing.distributed.shards import is_sharded
from slicefine_pl.slicing.frozen import FrozenMatrix, FrozenReport
from slicefine_pl.slicing.layers.base import SlicedLayer
from slicefine_pl.slicing.layers.masked import MaskedLayer
from slicefine_pl.slicing.layers.registry import COMPACT, Backend, SliceableMatrix, sliceable_matrices
from slicefine_pl.slicing.packed import PackedMatrix, can_be_trained, count_entries, packed_matrices, untrainable_reason
from slicefine_pl.slicing.schedule import Axis

OUTPUT_HEAD = "output head"
FROZEN = "frozen already"
BY_NAME = "sliced only when named"

FAMILIAR = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)  # nobody expects these to be sliced
FAMILIAR_NAME = re.compile(r"(^|_)(pos|positions?|positional|cls|class|tokens?|bias)(_|$)|embed")  # of raw parameters


@dataclass(frozen=True)
class TargetSettings:
    """What the user asks for; the arguments of ``slice_model`` that decide about targets."""

    targets: NamePatterns | None
    also_train: NamePatterns | None
    backend: Backend
    rank: int
    axes: tuple[Axis, ...]


@dataclass
class TargetSelection:
    """The answer of :func:`find_targets`.

    Attributes:
        chosen: What is sliced.
        fully_trained: Parameter name to parameter, for those trained whole.
        skipped: Name of a matrix that is left out, and the reason.
        frozen: What stays frozen, with its share of the network.
        notice: What the user should hear once, or ``None``.
    """

    chosen: list[SliceableMatrix] = field(default_factory=list)
    fully_trained: dict[str, nn.Parameter] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    frozen: FrozenReport = field(default_factory=FrozenReport)
    notice: str | None = None


def find_targets(net: nn.Module, settings: TargetSettings) -> TargetSelection:
    """Decide what is sliced and what is trained whole.

    Args:
        net: The network; not changed.
        settings: ``targets`` are regular expressions searched in the names of matrices; ``None`` takes every layer but
            output heads, tied weights, frozen ones, those narrower than the rank and what is trained whole.
            ``also_train`` are regular expressions searched in parameter names; ``None`` takes the new output heads.

    Raises:
        ValueError: If a pattern matches nothing or what cannot be sliced, or the network is sliced already, sharded,
            or not initialised.
    """
    open_already = [name for name, module in net.named_modules() if isinstance(module, SlicedLayer)]
    if open_already:
        raise ValueError(f"{shortlist(open_already)} are already sliced; close() the handle of these slices first.")
    if any(is_sharded(parameter) for parameter in net.parameters()):
        raise ValueError(
            "The network is sharded already, and slices are opened before: let FullyShardedStrategy shard it, or call"
            " shard_sliced_model(self) in configure_model."
        )
    if lazy := [name for name, module in net.named_modules() if _is_uninitialised(module)]:
        raise ValueError(
            f"{shortlist(f'{name} (not initialised yet)' for name in lazy)} cannot be frozen or sliced; pass one batch"
            " through the network before slices are opened."
        )
    heads = find_heads(net)
    found = TargetSelection(fully_trained=_trained_whole(net, heads, settings.also_train))
    present = {candidate.name: candidate for candidate in sliceable_matrices(net, settings.backend)}
    excluded = _excluded(net, heads, found)
    reasons = {name: _obstacle(candidate, excluded, settings) for name, candidate in present.items()}
    if settings.targets is None:
        named = {name for name, candidate in present.items() if candidate.layer}
        chosen = [name for name in present if name in named and reasons[name] is None]
    else:
        named = set(match_names("targets", settings.targets, present, "layer or parameter"))
        chosen = [name for name in present if name in named]
        _refuse([present[name] for name in chosen], reasons, settings)
    found.chosen = [present[name] for name in chosen]
    packed = [each for each in packed_matrices(net) if each.name not in found.fully_trained]
    found.skipped = {name: reasons[name] or BY_NAME for name in present if name not in chosen}
    found.skipped |= {each.name: each.reason for each in packed}
    found.frozen = _left_frozen(net, found, present, packed, heads, settings)
    if not found.chosen:
        room = _room((present[name] for name in named), reasons, settings)
        raise ValueError(
            f"targets={settings.targets!r} meets nothing that can be sliced."
            f" This network has {shortlist(_explained(found.skipped))}."
            + (f" Choose a rank of at most {max(room)}." if room else "")
            + (f"\n{found.frozen}" if found.frozen.has_unexpected and not room else "")
        )
    notices = [
        _head_notice(net, found, settings.also_train, frozen_heads=[head.name for head in heads]),
        _frozen_notice(found, settings),
    ]
    found.notice = "\n".join(filter(None, notices)) or None
    return found


def _is_uninitialised(module: nn.Module) -> bool:
    return any(nn.parameter.is_lazy(parameter) for parameter in module.parameters(recurse=False))


def _excluded(net: nn.Module, heads: list[Head], found: TargetSelection) -> dict[str, set[int]]:
    """Reasons for which a parameter is left out, each with the ids of the parameters it holds for."""
    return {
        "its weight is tied": tied_parameters(net),
        "trained in full": {id(parameter) for parameter in found.fully_trained.values()},
        OUTPUT_HEAD: {id(parameter) for head in heads for parameter in head.module.parameters()},
        FROZEN: {id(parameter) for parameter in net.parameters() if not parameter.requires_grad},
    }


def _trained_whole(net: nn.Module, heads: list[Head], also_train: NamePatterns | None) -> dict[str, nn.Parameter]:
    """The parameters that ``also_train`` names, or those of the new heads that are not frozen."""
    if also_train is not None:
        return match_names("also_train", also_train, dict(net.named_parameters()), "parameter")
    new = (head.module.named_parameters(prefix=head.name) for head in heads if not head.pretrained)
    return {name: parameter for name, parameter in chain.from_iterable(new) if parameter.requires_grad}


def _obstacle(candidate: SliceableMatrix, excluded: Mapping[str, set[int]], settings: TargetSettings) -> str | None:
    """Why a candidate is not sliced by default; ``None`` if it is."""
    parameter = candidate.parameter
    if not can_be_trained(parameter):
        return untrainable_reason(parameter)
    if getattr(candidate.module, "max_norm", None) is not None:
        return "max_norm rescales the weight in the forward pass"
    if settings.backend == "compact" and issubclass(candidate.implementation, MaskedLayer):
        return f"no compact layer; these have one: {COMPACT}"
    reason = next((reason for reason, parameters in excluded.items() if id(parameter) in parameters), None)
    return reason or _too_narrow(candidate, settings)


def _too_narrow(candidate: SliceableMatrix, settings: TargetSettings) -> str | None:
    """That there are fewer lines than the rank, if so."""
    size, axis = _narrowest(candidate, settings)
    told = f"{size} {axis}s are" if size > 1 else f"{size} {axis} is"
    return f"{told} fewer than rank={settings.rank}" if size < settings.rank else None


def _narrowest(candidate: SliceableMatrix, settings: TargetSettings) -> tuple[int, Axis]:
    """How many lines there are to choose from; where rows and columns alternate, of whichever there are fewer."""
    sizes: dict[Axis, int] = {"row": candidate.shape[0], "column": candidate.shape[1]}
    return min((sizes[axis], axis) for axis in settings.axes)


def _refuse(chosen: Iterable[SliceableMatrix], reasons: Mapping[str, str | None], settings: TargetSettings) -> None:
    """Named targets must all be served; a head, or a frozen layer, is no obstacle once the user has asked for it."""
    obstacles = {
        each: _too_narrow(each, settings) if reasons[each.name] in (OUTPUT_HEAD, FROZEN) else reasons[each.name]
        for each in chosen
    }
    refused = {each: reason for each, reason in obstacles.items() if reason is not None}
    if refused:
        told = _explained({each.name: reason for each, reason in refused.items()})
        room = _room(refused, {each.name: reason for each, reason in refused.items()}, settings)
        raise ValueError(
            f"targets={settings.targets!r} matches {shortlist(told)}. Narrow the pattern so that it leaves these out"
            + (f", or choose a rank of at most {min(room)}." if len(room) == len(refused) else ".")
        )


def _room(
    candidates: Iterable[SliceableMatrix], reasons: Mapping[str, str | None], settings: TargetSettings
) -> list[int]:
    """Of those left out for nothing but too few lines: how many each has."""
    return [
        _narrowest(each, settings)[0]
        for each in candidates
        if reasons[each.name] is not None and reasons[each.name] == _too_narrow(each, settings)
    ]


def _head_notice(
    net: nn.Module, found: TargetSelection, also_train: NamePatterns | None, frozen_heads: list[str]
) -> str | None:
    if also_train is not None:
        trained = tuple(found.fully_trained)
        frozen = [head for head in frozen_heads if not any(name.startswith(head + ".") for name in trained)]
        return f"also_train={also_train!r} leaves the output head {shortlist(frozen)} frozen." if frozen else None
    if frozen_heads:
        return None
    last = [candidate.name for candidate in found.chosen[-3:]]
    return (
        "No new output head was found, so only slices are trained. If the network has one, name it:"
        f" also_train={last[-1]!r}, for instance (the last layers are {shortlist(last)})."
    )


def _left_frozen(
    net: nn.Module,
    found: TargetSelection,
    present: Mapping[str, SliceableMatrix],
    packed: Iterable[PackedMatrix],
    heads: list[Head],
    settings: TargetSettings,
) -> FrozenReport:
    """Collect what is neither sliced nor trained whole; of tied matrices the first."""
    familiar = {id(parameter) for head in heads for parameter in head.module.parameters()}
    familiar |= {id(each) for module in net.modules() if isinstance(module, FAMILIAR) for each in module.parameters()}
    trained = {id(parameter) for parameter in found.fully_trained.values()}
    left = {
        (id(each.parameter), each.layout): each
        for each in reversed(list(present.values()))
        if each.name in found.skipped and id(each.parameter) not in trained
    }
    matrices = [_frozen(each, found.skipped[each.name], familiar, settings) for each in reversed(left.values())]
    matrices += [FrozenMatrix(each.name, each.size, each.reason) for each in packed]
    codes = [each for each in left.values() if not can_be_trained(each.parameter)]
    total = sum(parameter.numel() for parameter in net.parameters())
    total += sum(count_entries(each.module, each.parameter) - each.parameter.numel() for each in codes)
    return FrozenReport(matrices, present, total + sum(each.size for each in packed if not each.parameter))


def _frozen(candidate: SliceableMatrix, reason: str, familiar: set[int], settings: TargetSettings) -> FrozenMatrix:
    parameter, last = candidate.parameter, candidate.name.rpartition(".")[2]
    vector = sum(size > 1 for size in candidate.shape) < 2
    known = vector or id(parameter) in familiar or (not candidate.layer and FAMILIAR_NAME.search(last) is not None)
    narrow = _too_narrow(candidate, settings)
    return FrozenMatrix(
        candidate.name,
        size=math.prod(candidate.shape) if can_be_trained(parameter) else count_entries(candidate.module, parameter),
        reason=reason,
        lines=_narrowest(candidate, settings)[0] if reason == narrow else None,
        sliceable=narrow is None and reason in (BY_NAME, OUTPUT_HEAD, FROZEN),
        expected=reason == FROZEN or (can_be_trained(parameter) and known),
    )


def _frozen_notice(found: TargetSelection, settings: TargetSettings) -> str | None:
    """What stays frozen although a user may believe it to be trained; explicit targets need no notice."""
    if settings.targets is not None or not found.frozen.has_unexpected:
        return None
    if not any(matrix.lines is not None and not matrix.expected for matrix in found.frozen.matrices):
        return str(found.frozen)
    other = "row" if "column" in settings.axes else "column"
    return f"{found.frozen}\nA smaller rank, axis={other!r}, or also_train would reach those with too few lines."


def _explained(reasons: Mapping[str, str | None]) -> list[str]:
    return [f"{name} ({reason})" for name, reason in reasons.items()]
