"""Which matrices of a network can be sliced, and which class of sliced layer trains each of them.

A *compact* class computes the gradient of the slice only.  Other matrices are *masked*: the layer computes as before,
and the slice takes its part of the dense gradient.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from slicefine_pl.network.layers import transformers_conv1d
from slicefine_pl.slicing.distributed.shards import MatrixLayout
from slicefine_pl.slicing.layers.attention import SlicedMultiheadAttention
from slicefine_pl.slicing.layers.base import SlicedLayer
from slicefine_pl.slicing.layers.conv import SlicedConv
from slicefine_pl.slicing.layers.linear import SlicedConv1D, SlicedLinear
from slicefine_pl.slicing.layers.masked import masked_class
from slicefine_pl.slicing.packed import can_be_trained

Backend = Literal["auto", "compact", "mask"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
KERNELS = (_ConvNd, nn.Bilinear)
LAYERS = (nn.Linear, _ConvNd, nn.MultiheadAttention)  # sliced without being named; other parameters only by name
COMPACT = "nn.Linear, transformers' Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention"


@dataclass(frozen=True)
class SliceableMatrix:
    """A matrix that a slice could lie in.

    Attributes:
        name: Of the module; followed by the parameter, and the block, where that is not simply ``weight``.
        module: The owner of the parameter.
        implementation: The compact kind of sliced layer, or a ``MaskedLayer``.
        layout: Where in the module's parameters the matrix lies.
        layer: Whether the module maps inputs to outputs by this matrix, rather than being an embedding or the like.
    """

    name: str
    module: nn.Module
    implementation: type[SlicedLayer]
    layout: MatrixLayout
    layer: bool

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that holds the matrix."""
        parameter = self.module._parameters[self.layout.parameter]
        assert parameter is not None  # candidates() has looked
        return parameter

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape ``(O, I, ...)``."""
        return tuple(self.layout.view(self.parameter).shape)


def sliceable_matrices(net: nn.Module, backend: Backend) -> Iterator[SliceableMatrix]:
    """Everything in a network that has at least two dimensions, in the order of ``net.named_modules()``."""
    owners = _parametrized(net)
    for name, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # compiled: its class cannot be changed
        compact = compact_class(module)
        layouts = [] if compact is None else compact.slicefine_layouts(module)
        served = {layout.parameter for layout in layouts}
        others = [
            _masked_layout(owners.get(id(module), module), key, parameter)
            for key, parameter in module._parameters.items()
            if parameter is not None and key not in served and parameter.ndim > 1
        ]
        chosen = masked_class(module) if backend == "mask" or compact is None else compact
        for layout in [*layouts, *others]:
            layer = layout in layouts or (layout.parameter == "weight" and isinstance(module, LAYERS))
            yield SliceableMatrix(_told(name, layout), module, chosen, layout, layer)


def compact_class(module: nn.Module) -> type[SlicedLayer] | None:
    """The kind that computes what ``module`` does, with the gradient of the slice only; ``None`` if there is none.

    A subclass counts when it computes exactly what its base class computes; a weight behind a parametrization does not.
    """
    forward = type(module).forward
    if isinstance(module, nn.MultiheadAttention):
        plain = forward is nn.MultiheadAttention.forward
        return SlicedMultiheadAttention if plain and module.out_proj._parameters.get("weight") is not None else None
    weight = module._parameters.get("weight")
    if weight is None or nn.parameter.is_lazy(weight) or not can_be_trained(weight):
        return None
    if isinstance(module, nn.Linear):
        return SlicedLinear if forward is nn.Linear.forward else None
    if isinstance(module, CONVOLUTIONS):
        return SlicedConv if _convolves_plainly(module) else None
    conv1d = transformers_conv1d(module)
    return SlicedConv1D if conv1d is not None and forward is conv1d.forward else None


def _convolves_plainly(module: nn.Module) -> bool:
    classes = [base for base in CONVOLUTIONS if isinstance(module, base)]
    own = type(module)
    return any(own.forward is base.forward and own._conv_forward is base._conv_forward for base in classes)  # type: ignore[attr-defined]


def _parametrized(net: nn.Module) -> dict[int, nn.Module]:
    """The layer whose parameter a parametrization computes, by the id of the module that holds the original."""
    return {
        id(originals): layer
        for layer in net.modules()
        if parametrize.is_parametrized(layer)
        for originals in cast("nn.ModuleDict", layer.parametrizations).values()
    }


def _masked_layout(layer: nn.Module, key: str, parameter: nn.Parameter) -> MatrixLayout:
    """The matrix, or the stack of matrices, that a parameter without a compact kind holds.

    A convolution's kernel and the weight of ``nn.Bilinear`` are ``(O, I, ...)``, and so is what has four dimensions or
    more.  Three dimensions are a stack of matrices elsewhere, such as experts ``(E, O, I)``; leading dimensions of size
    1, such as the batch dimension of position embeddings, are a stack of one.
    """
    if isinstance(layer, KERNELS):
        return MatrixLayout(key)
    stack = 0
    while parameter.ndim - stack > 2 and parameter.shape[stack] == 1:
        stack += 1
    stack += parameter.ndim - stack == 3
    return MatrixLayout(key, transposed=stack > 0 and _stores_inputs_first(layer), stack=stack)


def _stores_inputs_first(layer: nn.Module) -> bool:
    """Whether experts are stored as ``(E, I, O)``: transformers' modules say so, except Llama 4's."""
    return getattr(layer, "is_transposed", False) is True or type(layer).__name__ == "Llama4TextExperts"


def _told(module: str, layout: MatrixLayout) -> str:
    parts = [module, "" if layout.parameter == "weight" else layout.parameter, layout.part]
    return ".".join(filter(None, parts)) or layout.parameter  # the network itself may own the weight
