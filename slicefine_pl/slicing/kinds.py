"""What of a module can be sliced, and by which kind of sliced layer.

Answers: how will this parameter be trained?  Compact kinds compute the gradient of the live lines only; everything else
is *masked*: the layer computes as ever, and the live lines take their part of the dense gradient.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from slicefine_pl.slicing.attention import SlicedMultiheadAttention
from slicefine_pl.slicing.conv import SlicedConv
from slicefine_pl.slicing.layer import SlicedLayer
from slicefine_pl.slicing.linear import SlicedConv1D, SlicedLinear
from slicefine_pl.slicing.parts import Block

Backend = Literal["auto", "compact", "mask"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, _ConvNd, nn.MultiheadAttention)  # sliced without being named; other parameters only by name
COMPACT = "nn.Linear, transformers' Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention"


class MaskedLayer(SlicedLayer):
    """Any module: computes as its dense class does, reading its sliced parameters through their readers."""


@dataclass(frozen=True)
class Candidate:
    """A matrix that a slice could lie in.

    Attributes:
        name: Of the module; followed by the parameter, and the block, where that is not simply ``weight``.
        module: The owner of the parameter.
        kind: The compact kind of sliced layer, or ``MaskedLayer``.
        block: Where in the module's parameters the matrix lies.
        layer: Whether the module maps inputs to outputs by this matrix, rather than being an embedding or the like.
    """

    name: str
    module: nn.Module
    kind: type[SlicedLayer]
    block: Block
    layer: bool

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that holds the matrix."""
        parameter = self.module._parameters[self.block.parameter]
        assert parameter is not None  # candidates() has looked
        return parameter

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape ``(O, I, ...)``; empty for a parameter that is not initialised yet."""
        return tuple(self.block.of(self.parameter).shape)


def candidates(net: nn.Module, backend: Backend) -> Iterator[Candidate]:
    """Everything in a network that has at least two dimensions, in the order of ``net.named_modules()``."""
    for name, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # compiled: its class cannot be changed
        kind = compact_kind(module)
        blocks = [] if kind is None else kind.slicefine_blocks(module)
        served = {block.parameter for block in blocks}
        others = [
            _plain_block(key, parameter)
            for key, parameter in module._parameters.items()
            if parameter is not None and key not in served and _is_matrix(parameter)
        ]
        chosen = MaskedLayer if backend == "mask" or kind is None else kind
        for block in [*blocks, *others]:
            layer = block in blocks or (block.parameter == "weight" and isinstance(module, LAYERS))
            yield Candidate(_told(name, block), module, chosen, block, layer)


def compact_kind(module: nn.Module) -> type[SlicedLayer] | None:
    """The kind that computes what ``module`` does, with the gradient of the slice only; ``None`` if there is none.

    A subclass counts when it computes exactly what its base class computes; a weight behind a parametrization does not.
    """
    forward = type(module).forward
    if isinstance(module, nn.MultiheadAttention):
        plain = forward is nn.MultiheadAttention.forward
        return SlicedMultiheadAttention if plain and module.out_proj._parameters.get("weight") is not None else None
    weight = module._parameters.get("weight")
    if weight is None or nn.parameter.is_lazy(weight) or not weight.is_floating_point():
        return None
    if isinstance(module, nn.Linear):
        return SlicedLinear if forward is nn.Linear.forward else None
    if isinstance(module, CONVOLUTIONS):
        return SlicedConv if _convolves_plainly(module) else None
    names = {(base.__module__, base.__name__) for base in type(module).__mro__ if "forward" in vars(base)}
    # By name, because this floor imports torch only; the one forward must be Conv1D's own.
    if names == {("transformers.pytorch_utils", "Conv1D"), ("torch.nn.modules.module", "Module")}:
        return SlicedConv1D
    return None


def _convolves_plainly(module: nn.Module) -> bool:
    kinds = [base for base in CONVOLUTIONS if isinstance(module, base)]
    own = type(module)
    return any(own.forward is base.forward and own._conv_forward is base._conv_forward for base in kinds)  # type: ignore[attr-defined]


def _is_matrix(parameter: nn.Parameter) -> bool:
    return nn.parameter.is_lazy(parameter) or parameter.ndim > 1


def _plain_block(name: str, parameter: nn.Parameter) -> Block:
    """The whole of a parameter; leading dimensions of size 1 are dropped down to a matrix."""
    if nn.parameter.is_lazy(parameter):
        return Block(name)
    leading = 0
    while name != "weight" and parameter.ndim - leading > 2 and parameter.shape[leading] == 1:
        leading += 1
    return Block(name, leading=leading)


def _told(module: str, block: Block) -> str:
    parts = [module, "" if block.parameter == "weight" else block.parameter, block.part]
    return ".".join(filter(None, parts)) or block.parameter  # the network itself may own the weight
