"""Choose the weights of a network to prune, and give a reason for every weight that stays dense.

Weights of linear layers, convolutions, attention and token embeddings can be pruned; norms and biases cannot.

Shapes:  O outputs · I inputs
Source:  Frantar et al., arXiv:2309.08520 and its code, for what is pruned; the exceptions are ours.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from slicefine_pl.network.layers import tied_parameters, transformers_conv1d
from slicefine_pl.network.names import NamePatterns, match_names, shortlist
from slicefine_pl.sparsity.patterns import Pattern, Unstructured

Criterion = Literal["magnitude", "wanda", "gradient", "random"]

SMALLEST = 4096  # weights; a smaller matrix is pruned only if the targets match it
POSITIONS = re.compile(r"pos(ition)?(al)?_?(emb|bias)|relative_attention_bias|(^|\.)w[pt]?pe($|\.)")


@dataclass(frozen=True)
class PrunableWeight:
    """A weight matrix that can be pruned.

    Attributes:
        name: Parameter name, as in ``net.named_parameters()``.
        module: Module that owns the parameter.
        key: Name of the parameter in its module.
        transposed: Whether the weight is stored as ``(I, O, ...)``.
        embedding: Whether it is an embedding table.
    """

    name: str
    module: nn.Module
    key: str = "weight"
    transposed: bool = False
    embedding: bool = False

    @property
    def parameter(self) -> nn.Parameter:
        """The stored parameter, also if its layer is sliced.

        Raises:
            RuntimeError: Other code has replaced the parameter.
        """
        parameter = self.module._parameters.get(self.key)
        if parameter is None:
            raise RuntimeError(
                f"{self.name} is no longer a parameter: other code has replaced it, such as torch.nn.utils.prune or a"
                " parametrization. Remove that, or apply it before the run."
            )
        return parameter

    def matrix(self, stored: Tensor) -> Tensor:
        """View a tensor that is stored like the parameter as a matrix of shape ``(O, I, ...)``, and back."""
        return stored.transpose(0, 1) if self.transposed else stored

    def sparsity(self, target: float) -> float:
        """Return the sparsity of this weight at a target S: S, or ``1 - sqrt(1 - S)`` for an embedding."""
        return 1 - math.sqrt(1 - target) if self.embedding else target


@dataclass
class PruningTargets:
    """Weights to prune.

    Attributes:
        chosen: The weights.
        skipped: Reason why a weight stays dense, by parameter name.
    """

    chosen: list[PrunableWeight] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def find_prunable(net: nn.Module) -> Iterator[PrunableWeight]:
    """Yield every weight that can be pruned, in the order of ``net.named_modules()``."""
    for name, module in net.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.MultiheadAttention):
            keys = ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"]  # out_proj is an nn.Linear
            present = [key for key in keys if module._parameters.get(key) is not None]
            yield from (PrunableWeight(prefix + key, module, key) for key in present)
        elif module._parameters.get("weight") is None:
            continue
        elif isinstance(module, nn.Embedding):
            yield PrunableWeight(f"{prefix}weight", module, embedding=True)
        elif isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, nn.modules.lazy.LazyModuleMixin):
            yield PrunableWeight(f"{prefix}weight", module, transposed=bool(getattr(module, "transposed", False)))
        elif transformers_conv1d(module) is not None:
            yield PrunableWeight(f"{prefix}weight", module, transposed=True)


def choose_pruning_targets(
    net: nn.Module, pattern: Pattern, criterion: Criterion, targets: NamePatterns | None = None
) -> PruningTargets:
    """Choose the weights to prune.

    By default these are the weights of all linear layers, convolutions and attention, and with an unstructured pattern
    token embeddings. Exceptions are tied weights, weights with fewer than 4,096 entries, and weights whose shape does
    not fit the pattern.

    Args:
        net: The network; not changed.
        pattern: Arrangement of the pruned weights.
        criterion: How weights are scored. ``"wanda"`` excludes torch's attention, whose inputs hooks do not see.
        targets: Regular expressions, searched in parameter names; ``None`` takes the default.

    Raises:
        ValueError: An expression matches no weight, or one that cannot be pruned; or no weight is left.
    """
    present = {each.name: each for each in find_prunable(net)}
    shared = tied_parameters(net)
    tied = {name for name, each in present.items() if id(each.parameter) in shared}
    hidden = _read_by_attention(net) if criterion == "wanda" else set()
    refusals = {name: _obstacle(each, pattern, tied, hidden) for name, each in present.items()}
    if targets is None:
        skipped = {name: refusals[name] or _too_small(each) for name, each in present.items()}
    else:
        named = match_names("targets", targets, present, "prunable weight")
        if refused := [f"{name} ({refusals[name]})" for name in named if refusals[name]]:
            raise ValueError(
                f"targets={targets!r} matches {shortlist(refused)}; narrow the pattern so that it leaves these out."
            )
        skipped = {name: None if name in named else "not in targets" for name in present}
    found = PruningTargets([present[name] for name, reason in skipped.items() if reason is None])
    found.skipped = {name: reason for name, reason in skipped.items() if reason is not None}
    if not found.chosen:
        rest = shortlist((f"{name} ({reason})" for name, reason in found.skipped.items()), none="no matrix")
        raise ValueError(f"nothing can be pruned with pattern='{pattern}': this network has {rest}.")
    return found


def _read_by_attention(net: nn.Module) -> set[int]:
    """Return ids of the parameters that torch's attention reads without calling their modules."""
    attentions = (module for module in net.modules() if isinstance(module, nn.MultiheadAttention))
    return {id(parameter) for attention in attentions for parameter in attention.parameters()}


def _obstacle(each: PrunableWeight, pattern: Pattern, tied: set[str], hidden: set[int]) -> str | None:
    if each.name in tied:
        return "tied to another layer"
    if id(each.parameter) in hidden:
        return "in torch's attention, whose inputs criterion='wanda' does not see"
    if not each.parameter.is_floating_point():
        return f"{each.parameter.dtype} is not a floating-point type"
    if each.embedding and not isinstance(pattern, Unstructured):
        return "an embedding, which is looked up row by row"
    return pattern.obstacle(tuple(each.matrix(each.parameter).shape))


def _too_small(each: PrunableWeight) -> str | None:
    if each.embedding and POSITIONS.search(each.name):
        return "position embeddings"
    return f"fewer than {SMALLEST} weights" if each.parameter.numel() < SMALLEST else None
