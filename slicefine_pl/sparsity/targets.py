"""Which weights of a network are pruned, how sparse each becomes, and why the rest stays dense.

Linear maps, convolutions, attention and token embeddings; never norms and biases.

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

SMALLEST = 4096  # weights; a smaller matrix stays dense unless it is named
POSITIONS = re.compile(r"pos(ition)?(al)?_?(emb|bias)|relative_attention_bias|(^|\.)w[pt]?pe($|\.)")


@dataclass(frozen=True)
class Prunable:
    """A weight that can be pruned.

    Attributes:
        name: Of the parameter, as ``net.named_parameters()`` has it.
        module: The owner of the parameter.
        key: Name of the parameter in its owner.
        transposed: Whether it is stored as ``(I, O)``.
        embedding: Whether it is a table that is looked up rather than a map.
    """

    name: str
    module: nn.Module
    key: str = "weight"
    transposed: bool = False
    embedding: bool = False

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter itself, also where a sliced layer stands in front of it."""
        parameter = self.module._parameters.get(self.key)
        if parameter is None:
            raise RuntimeError(
                f"{self.name} is no longer a parameter: something has replaced it since masks were made, such as"
                " torch.nn.utils.prune or a parametrization. Take that out, or do it before the run."
            )
        return parameter

    def matrix(self, stored: Tensor) -> Tensor:
        """A tensor stored like the parameter, as a view of shape ``(O, I, ...)``."""
        return stored.transpose(0, 1) if self.transposed else stored

    def sparsity(self, target: float) -> float:
        """How sparse it becomes at a target: an embedding is pruned less, ``1 - sqrt(1 - S)``."""
        return 1 - math.sqrt(1 - target) if self.embedding else target


@dataclass
class Targets:
    """The answer of :func:`find_targets`: what is pruned, and what stays dense for which reason, by parameter name."""

    chosen: list[Prunable] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def prunable(net: nn.Module) -> Iterator[Prunable]:
    """Every weight that could be pruned, in the order of ``net.named_modules()``."""
    for name, module in net.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.MultiheadAttention):
            keys = ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"]  # out_proj is a Linear itself
            present = [key for key in keys if module._parameters.get(key) is not None]
            yield from (Prunable(prefix + key, module, key) for key in present)
        elif module._parameters.get("weight") is None:
            continue
        elif isinstance(module, nn.Embedding):
            yield Prunable(f"{prefix}weight", module, embedding=True)
        elif isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, nn.modules.lazy.LazyModuleMixin):
            yield Prunable(f"{prefix}weight", module, transposed=bool(getattr(module, "transposed", False)))
        elif transformers_conv1d(module) is not None:
            yield Prunable(f"{prefix}weight", module, transposed=True)


def find_targets(
    net: nn.Module, pattern: Pattern, criterion: Criterion, targets: NamePatterns | None = None
) -> Targets:
    """Decide what is pruned.

    Args:
        net: The network; not changed.
        pattern: How pruned weights lie.
        criterion: What the scores need to see.
        targets: Regular expressions searched in parameter names; ``None`` takes every linear map, convolution and
            attention, and for single weights the token embeddings, but what is tied, has fewer than 4,096 weights or
            does not fit the pattern.

    Raises:
        ValueError: A pattern matches nothing, or something that cannot be pruned; or nothing is left.
    """
    present = {each.name: each for each in prunable(net)}
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
        skipped = {name: None if name in named else "not named" for name in present}
    found = Targets([present[name] for name, reason in skipped.items() if reason is None])
    found.skipped = {name: reason for name, reason in skipped.items() if reason is not None}
    if not found.chosen:
        told = shortlist((f"{name} ({reason})" for name, reason in found.skipped.items()), none="no matrix")
        raise ValueError(f"nothing can be pruned with pattern '{pattern}': this network has {told}.")
    return found


def _read_by_attention(net: nn.Module) -> set[int]:
    """Parameters whose inputs no hook sees, as torch's attention reads them past the module."""
    attentions = (module for module in net.modules() if isinstance(module, nn.MultiheadAttention))
    return {id(parameter) for attention in attentions for parameter in attention.parameters()}


def _obstacle(each: Prunable, pattern: Pattern, tied: set[str], hidden: set[int]) -> str | None:
    if each.name in tied:
        return "tied to another layer"
    if id(each.parameter) in hidden:
        return "in torch's attention, whose inputs criterion='wanda' does not see"
    if not each.parameter.is_floating_point():
        return f"{each.parameter.dtype} is no floating-point type"
    if each.embedding and not isinstance(pattern, Unstructured):
        return "an embedding, which is looked up row by row"
    return pattern.obstacle(tuple(each.matrix(each.parameter).shape))


def _too_small(each: Prunable) -> str | None:
    if each.embedding and POSITIONS.search(each.name):
        return "a table of positions"
    return f"fewer than {SMALLEST} weights" if each.parameter.numel() < SMALLEST else None
