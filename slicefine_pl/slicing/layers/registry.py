"""Which matrices of a network can be sliced, and which class of sliced layer trains each of them.

A *compact* class computes the gradient of the slice only. Other matrices are *masked*: the layer computes as before,
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
from slicefine_pl.slicing.layers.attention import SlicedMultiheadAttention
from slicefine_pl.slicing.layers.base import SlicedLayer
from slicefine_pl.slicing.layers.conv import SlicedConv
from slicefine_pl.slicing.layers.linear import SlicedConv1D, SlicedLinear
from slicefine_pl.slicing.layers.masked import masked_class
from slicefine_pl.slicing.layout import MatrixLayout
from slicefine_pl.slicing.packed import can_be_trained

Backend = Literal["auto", "compact", "mask"]
"""How the gradient of a slice is computed: alone, as a part of the dense gradient, or alone wherever possible."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
KERNELS = (_ConvNd, nn.Bilinear)
LAYERS = (nn.Linear, _ConvNd, nn.MultiheadAttention)  # sliced by default; other parameters only by name
COMPACT_LAYERS = "nn.Linear, transformers' Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention"


@dataclass(frozen=True)
class SliceableMatrix:
    """A matrix of a network that could be sliced.

    Attributes:
        name: Name of the module, followed by the parameter and the part of it where that is not simply ``weight``.
        module: The module that owns the parameter.
        implementation: The class of sliced layer that would train it: a compact one, or a ``MaskedLayer``.
        layout: How the parameter stores the matrix.
        is_layer_weight: Whether the matrix is the weight of a linear layer, convolution or attention. Others, such as
            embeddings, are sliced only where the user names them.
    """

    name: str
    module: nn.Module
    implementation: type[SlicedLayer]
    layout: MatrixLayout
    is_layer_weight: bool

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that stores the matrix."""
        parameter = self.module._parameters[self.layout.parameter]
        assert parameter is not None  # sliceable_matrices() has checked it
        return parameter

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix, ``(O, I, ...)``."""
        return tuple(self.layout.view(self.parameter).shape)


def sliceable_matrices(net: nn.Module, backend: Backend) -> Iterator[SliceableMatrix]:
    """All matrices of a network: every parameter of two or more dimensions, in the order of ``net.named_modules()``.

    Args:
        net: The network.
        backend: ``"mask"`` chooses masked classes throughout.
    """
    owners = _parametrized(net)
    for name, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # the class of a compiled module cannot be changed
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
            is_layer_weight = layout in layouts or (layout.parameter == "weight" and isinstance(module, LAYERS))
            yield SliceableMatrix(_matrix_name(name, layout), module, chosen, layout, is_layer_weight)


def compact_class(module: nn.Module) -> type[SlicedLayer] | None:
    """The compact class of sliced layer that computes what ``module`` does; ``None`` if there is none.

    A subclass of a known layer qualifies if it does not override what the layer computes. A layer whose weight is
    parametrized does not qualify.
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
        return SlicedConv if _computes_plain_convolution(module) else None
    conv1d = transformers_conv1d(module)
    return SlicedConv1D if conv1d is not None and forward is conv1d.forward else None


def _computes_plain_convolution(module: nn.Module) -> bool:
    classes = [base for base in CONVOLUTIONS if isinstance(module, base)]
    own = type(module)
    return any(own.forward is base.forward and own._conv_forward is base._conv_forward for base in classes)  # type: ignore[attr-defined]


def _parametrized(net: nn.Module) -> dict[int, nn.Module]:
    """Parametrized layers, by the id of the module that stores their original parameter."""
    return {
        id(originals): layer
        for layer in net.modules()
        if parametrize.is_parametrized(layer)
        for originals in cast("nn.ModuleDict", layer.parametrizations).values()
    }


def _masked_layout(layer: nn.Module, key: str, parameter: nn.Parameter) -> MatrixLayout:
    """How a parameter without a compact class stores a matrix, or a stack of matrices.

    The weights of convolutions and of ``nn.Bilinear`` are ``(O, I, ...)``, and so are parameters of four or more
    dimensions. Other parameters of three dimensions are stacks, such as experts ``(E, O, I)``. Leading dimensions of
    size 1, such as the batch dimension of position embeddings, are stacks of one matrix.
    """
    if isinstance(layer, KERNELS):
        return MatrixLayout(key)
    stack = 0
    while parameter.ndim - stack > 2 and parameter.shape[stack] == 1:
        stack += 1
    stack += parameter.ndim - stack == 3
    return MatrixLayout(key, transposed=stack > 0 and _stores_inputs_first(layer), stack=stack)


def _stores_inputs_first(layer: nn.Module) -> bool:
    """Whether experts are stored as ``(E, I, O)``: an attribute in transformers, which Llama 4's experts lack."""
    return getattr(layer, "is_transposed", False) is True or type(layer).__name__ == "Llama4TextExperts"


def _matrix_name(module: str, layout: MatrixLayout) -> str:
    parts = [module, "" if layout.parameter == "weight" else layout.parameter, layout.part]
    return ".".join(filter(None, parts)) or layout.parameter  # the network itself may own the weight
