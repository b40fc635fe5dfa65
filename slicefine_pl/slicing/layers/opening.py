"""Open slices in a layer, and close them, by changing the layer's class in place."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn

from slicefine_pl.slicing.distributed.shards import is_sharded
from slicefine_pl.slicing.layers.base import SlicedLayer, child_name, sliced_class
from slicefine_pl.slicing.layers.registry import SliceableMatrix
from slicefine_pl.slicing.layout import MatrixLayout
from slicefine_pl.slicing.slice import Slice


def open_layer(module: nn.Module, implementation: type[SlicedLayer], layouts: Sequence[MatrixLayout]) -> SlicedLayer:
    """Turn a dense layer into a sliced one, in place. Its slices are added by :func:`add_slice`.

    Args:
        module: The dense layer. The parameters that ``layouts`` names are frozen.
        implementation: How the sliced layer computes, such as ``SlicedLinear``.
        layouts: The matrices that will be sliced.

    Returns:
        The same object, now a ``SlicedLayer``.
    """
    parameters = frozenset(layout.parameter for layout in layouts)
    for parameter in parameters:
        module.get_parameter(parameter).requires_grad_(False)
    module.__class__ = sliced_class(implementation, type(module), parameters)
    layer = cast("SlicedLayer", module)
    layer.slicefine_writes_manually = False
    return layer


def open_layers(matrices: Iterable[SliceableMatrix]) -> dict[int, SlicedLayer]:
    """Open the layers of matrices, each layer once.

    Args:
        matrices: The matrices that will be sliced; a layer may own several.

    Returns:
        The sliced layers, by id of the module.
    """
    by_module: dict[int, list[SliceableMatrix]] = {}
    for matrix in matrices:
        by_module.setdefault(id(matrix.module), []).append(matrix)
    return {
        key: open_layer(own[0].module, own[0].implementation, [matrix.layout for matrix in own])
        for key, own in by_module.items()
    }


def add_slice(
    layer: SlicedLayer,
    layout: MatrixLayout,
    rank: int,
    line_length: int,
    dtype: torch.dtype | None,
    scaled: bool = False,
) -> Slice:
    """Add the slice of one matrix to an opened layer. It has no position until ``slice_.move_to(...)``.

    Args:
        layer: The layer.
        layout: The matrix.
        rank: Number of trainable lines (R).
        line_length: Numbers per line, with padding (L).
        dtype: Type of the trainable values; ``None`` takes the parameter's.
        scaled: Whether it trains the scaled change of its lines, rather than the lines.
    """
    slice_ = Slice(layout, rank, line_length, layer.slicefine_stored(layout.parameter), dtype, scaled)
    layer.add_module(child_name(layout.parameter, layout.part), slice_)
    return slice_


def close_layer(layer: SlicedLayer) -> None:
    """Turn a sliced layer back into the dense layer it was, in place. It keeps what its slices learned."""
    if any(slice_.adds_to_output for slice_ in layer.slicefine_slices()) and not layer.slicefine_is_sharded():
        layer.slicefine_merge()
    elif not layer.slicefine_writes_manually:
        layer.slicefine_write()
    for name in [name for name, child in layer._modules.items() if isinstance(child, Slice)]:
        del layer._modules[name]
    for parameter in layer.slicefine_parameters:
        _count_change(layer.slicefine_stored(parameter))
    del layer.slicefine_writes_manually
    layer.__dict__.pop("slicefine_no_grad_reason", None)
    layer.__class__ = cast("type[SlicedLayer]", layer.slicefine_dense_class)


def _count_change(stored: nn.Parameter) -> None:
    """Count what slices wrote as a change in torch's version counter: writes themselves do not."""
    if not (stored.is_inference() or is_sharded(stored)):
        torch.autograd.graph.increment_version(stored)


def close_slices(net: nn.Module) -> None:
    """Close all slices of a network that has no handle, such as a copy by ``deepcopy`` or pickle, or an average.

    A network that :func:`slice_model` opened is closed by its handle, which also restores ``requires_grad``.
    """
    for module in net.modules():
        if isinstance(module, SlicedLayer):
            close_layer(module)


@contextmanager
def as_dense(net: nn.Module) -> Iterator[None]:
    """Within the context, sliced layers compute as the dense layers they were, with the values trained so far.

    Use it to compute gradients of whole weights while slices are open. Nothing is copied, except weights in half
    precision with slices along directions. Do not train the slices inside the context.
    """
    layers = [module for module in net.modules() if isinstance(module, SlicedLayer)]
    opened = [(layer, layer.__class__, dict(layer._parameters)) for layer in layers]
    for layer in layers:
        if not layer.slicefine_writes_manually:
            layer.slicefine_write()
        for parameter in layer.slicefine_added_to_output():
            merged = layer.slicefine_merged(parameter)
            layer._parameters[parameter] = nn.Parameter(merged, layer.slicefine_stored(parameter).requires_grad)
        layer.__class__ = cast("type[SlicedLayer]", layer.slicefine_dense_class)
    try:
        yield
    finally:
        for layer, opened_class, parameters in opened:
            layer.__class__ = opened_class
            layer._parameters.update(parameters)
