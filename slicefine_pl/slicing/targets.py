"""Select what is sliced and what is trained in full, and say why the rest is left out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from torch import nn

from slicefine_pl.network.heads import Head, find_heads
from slicefine_pl.network.names import NamePatterns, match_names, shortlist
from slicefine_pl.slicing.distributed.shards import is_sharded
from slicefine_pl.slicing.frozen import FrozenReport, report_frozen
from slicefine_pl.slicing.layers.base import SlicedLayer
from slicefine_pl.slicing.layers.registry import SliceableMatrix, sliceable_matrices
from slicefine_pl.slicing.obstacles import BY_NAME, Obstacles, TargetSettings
from slicefine_pl.slicing.packed import packed_matrices


@dataclass
class TargetSelection:
    """The result of :func:`find_targets`.

    Attributes:
        chosen: Matrices that are sliced.
        fully_trained: Parameters that are trained in full, by name.
        skipped: Matrices that are not sliced, by name, and the reason for each.
        frozen: Report of what stays frozen, with its share of the parameters.
        notice: Text of a warning to the user, or ``None``.
    """

    chosen: list[SliceableMatrix]
    fully_trained: dict[str, nn.Parameter]
    skipped: dict[str, str]
    frozen: FrozenReport
    notice: str | None = None


def find_targets(net: nn.Module, settings: TargetSettings) -> TargetSelection:
    """Select the targets in a network.

    Args:
        net: The network; it is not changed.
        settings: The user's settings. ``targets=None`` takes every linear layer, convolution and attention that has no
            obstacle (see :class:`Obstacles`), and ``also_train=None`` the new output heads.

    Raises:
        ValueError: A pattern matches nothing, or a matrix that cannot be sliced; nothing can be sliced; or the network
            is already sliced, sharded, or not initialized.
    """
    _check_network(net)
    heads = find_heads(net)
    fully_trained = _select_fully_trained(net, heads, settings.also_train)
    matrices = {matrix.name: matrix for matrix in sliceable_matrices(net, settings.backend)}
    names = [] if settings.exclude is None else settings.exclude
    excluded = match_names("exclude", names, matrices, "layer or parameter")
    obstacles = Obstacles(net, heads, fully_trained, settings, excluded)
    if settings.targets is None:
        named = {name: matrix for name, matrix in matrices.items() if matrix.is_layer_weight}
        chosen = {name: matrix for name, matrix in named.items() if obstacles.by_default(matrix) is None}
    else:
        matched = match_names("targets", settings.targets, matrices, "layer or parameter")
        named = chosen = {name: matrix for name, matrix in matched.items() if name not in excluded}
        _check_named(named.values(), obstacles, settings)
    left = [matrix for name, matrix in matrices.items() if name not in chosen]
    packed = [each for each in packed_matrices(net) if each.name not in fully_trained]
    skipped = {matrix.name: obstacles.by_default(matrix) or BY_NAME for matrix in left}
    skipped |= {each.name: each.reason for each in packed}
    frozen = report_frozen(net, left, list(matrices), packed, heads, obstacles)
    selection = TargetSelection(list(chosen.values()), fully_trained, skipped, frozen)
    if not chosen:
        reasons = {matrix: obstacles.by_default(matrix) for matrix in named.values()}
        raise ValueError(_nothing_to_slice(selection, obstacles.possible_ranks(reasons), settings))
    notices = [_head_notice(selection, settings.also_train, heads), _frozen_notice(selection, settings)]
    selection.notice = "\n".join(filter(None, notices)) or None
    return selection


def _check_network(net: nn.Module) -> None:
    if sliced := [name for name, module in net.named_modules() if isinstance(module, SlicedLayer)]:
        raise ValueError(f"{shortlist(sliced)} are already sliced; close() the handle of these slices first.")
    if any(is_sharded(parameter) for parameter in net.parameters()):
        raise ValueError(
            "The network is already sharded, but slices must be opened before: let FullyShardedStrategy shard it, or"
            " call shard_sliced_model(self) in configure_model."
        )
    if lazy := [name for name, module in net.named_modules() if _is_uninitialized(module)]:
        raise ValueError(
            f"{shortlist(f'{name} (not initialized yet)' for name in lazy)} cannot be frozen or sliced; pass one batch"
            " through the network before the slices are opened."
        )


def _is_uninitialized(module: nn.Module) -> bool:
    return any(nn.parameter.is_lazy(parameter) for parameter in module.parameters(recurse=False))


def _select_fully_trained(
    net: nn.Module, heads: Iterable[Head], also_train: NamePatterns | None
) -> dict[str, nn.Parameter]:
    """The parameters that ``also_train`` names, or those of new output heads that are not frozen."""
    if also_train is not None:
        return match_names("also_train", also_train, dict(net.named_parameters()), "parameter")
    new = (head.module.named_parameters(prefix=head.name) for head in heads if not head.pretrained)
    return {name: parameter for name, parameter in chain.from_iterable(new) if parameter.requires_grad}


def _check_named(named: Iterable[SliceableMatrix], obstacles: Obstacles, settings: TargetSettings) -> None:
    """Check that every matrix that the user's patterns match can be sliced.

    Raises:
        ValueError: One cannot; the message says why, and which rank would be possible.
    """
    reasons = {matrix: obstacles.if_named(matrix) for matrix in named}
    refused = {matrix: reason for matrix, reason in reasons.items() if reason is not None}
    if refused:
        ranks = obstacles.possible_ranks(refused)
        listed = _with_reasons({matrix.name: reason for matrix, reason in refused.items()})
        raise ValueError(
            f"targets={settings.targets!r} matches {listed}. Narrow the pattern so that it leaves these out"
            + (f", or choose a rank of at most {min(ranks)}." if len(ranks) == len(refused) else ".")
        )


def _nothing_to_slice(selection: TargetSelection, ranks: list[int], settings: TargetSettings) -> str:
    return (
        f"targets={settings.targets!r} selects nothing that can be sliced."
        f" This network has {_with_reasons(selection.skipped)}."
        + (f" Choose a rank of at most {max(ranks)}." if ranks else "")
        + (f"\n{selection.frozen}" if selection.frozen.has_unexpected and not ranks else "")
    )


def _head_notice(selection: TargetSelection, also_train: NamePatterns | None, heads: Iterable[Head]) -> str | None:
    """The notice that an output head stays frozen, or that no head was found."""
    found = list(heads)
    if also_train is not None:
        trained = {id(parameter) for parameter in selection.fully_trained.values()}  # tied ones have other names
        frozen = [head.name for head in found if trained.isdisjoint(map(id, head.module.parameters()))]
        return f"also_train={also_train!r} leaves the output head {shortlist(frozen)} frozen." if frozen else None
    if found:
        return None
    last = [matrix.name for matrix in selection.chosen[-3:]]
    return (
        "No new output head was found, so only slices are trained. If the network has one, name it:"
        f" also_train={last[-1]!r}, for example (the last layers are {shortlist(last)})."
    )


def _frozen_notice(selection: TargetSelection, settings: TargetSettings) -> str | None:
    """The notice that matrices stay frozen that a user may believe to be trained. Explicit targets need none."""
    report = selection.frozen
    if settings.targets is not None or not report.has_unexpected:
        return None
    if not any(matrix.lines is not None and not matrix.expected for matrix in report.matrices):
        return str(report)
    other = "row" if "column" in settings.axes else "column"
    advice = f"axis={other!r}" if settings.basis == "standard" else "basis='standard' with axis='row'"
    return f"{report}\nA smaller rank, {advice}, or also_train would train the matrices with too few lines."


def _with_reasons(reasons: Mapping[str, str]) -> str:
    return shortlist(f"{name} ({reason})" for name, reason in reasons.items())
