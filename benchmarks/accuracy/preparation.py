"""Prepare a module to be trained by one of the methods of ``studies.yaml``."""

import re
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn
from transformers import PreTrainedModel

from benchmarks.accuracy.studies import SLICES, MethodConfig
from benchmarks.accuracy.tasks import Module
from benchmarks.harness.methods import METHODS, queries_and_values
from slicefine_pl import SliceFineCallback
from slicefine_pl.network.heads import find_heads
from slicefine_pl.slicing import slice_model


class NotApplicableError(Exception):
    """A method cannot be applied to a network; the message says why."""


def prepare(method: MethodConfig, module: Module, seed: int) -> list[Callback]:
    """Prepare a module in place.

    Returns:
        The callbacks that the run needs.

    Raises:
        NotApplicableError: The network lacks what the method trains.
    """
    net = module.model
    if method.weights == "random":
        randomize(net)
    if method.kind in SLICES:
        if method.position is None:
            return [slice_callback(method, seed, layer_patterns(method, net))]
        fixed_slices(net, method, seed, layer_patterns(method, net))
    else:
        try:
            METHODS[method.kind].prepare(net, new_head(net), layers_of(method, net), method.rank)
        except ValueError as reason:
            raise NotApplicableError(str(reason)) from reason
    return []


def layers_of(method: MethodConfig, net: nn.Module) -> list[str]:
    """Names of the layers that get an adapter or slice."""
    return queries_and_values(targets(net)) if method.layers == "query_value" else targets(net)


def layer_patterns(method: MethodConfig, net: nn.Module) -> list[str] | None:
    """Patterns of these layers, with or without a module around the network; ``None`` for all layers."""
    if method.layers == "all":
        return None
    try:
        return [rf"(^|\.){re.escape(name)}$" for name in layers_of(method, net)]
    except ValueError as reason:
        raise NotApplicableError(str(reason)) from reason


def new_head(net: nn.Module) -> str | None:
    """Name of the new output head, if there is one."""
    return next((found.name for found in find_heads(net) if not found.pretrained), None)


def targets(net: nn.Module) -> list[str]:
    """Names of the layers that slices of rank 32 lie in; adapters work on the same layers."""
    handle = slice_model(net, rank=32)
    names = [each.name for each in handle]
    handle.close()
    return names


def slice_callback(method: MethodConfig, seed: int, layers: list[str] | None) -> SliceFineCallback:
    """Slices that move, or that lie along directions."""
    return SliceFineCallback(
        targets=layers,
        rank=method.rank,
        axis=method.kind,  # type: ignore[arg-type]
        interval=method.interval,
        order=method.order,  # type: ignore[arg-type]
        seed=seed,
        lr_scale=method.lr_scale,
        basis=method.basis,  # type: ignore[arg-type]
    )


def fixed_slices(net: nn.Module, method: MethodConfig, seed: int, layers: list[str] | None = None) -> None:
    """Open slices that never move: at the first, at the last, or at random columns or rows of each weight."""
    handle = slice_model(
        net,
        rank=method.rank,
        axis=method.kind,  # type: ignore[arg-type]
        targets=layers,
        seed=seed,
        lr_scale=method.lr_scale,
    )
    if method.position == "random":
        return
    state = handle.state_dict()
    for each in state["slices"].values():
        size = len(each["visited"][each["axis"]])
        first = 0 if method.position == "first" else size - method.rank
        each["index"] = torch.arange(first, first + method.rank)
    handle.load_state_dict(state)


def randomize(net: Any) -> None:
    """Replace all weights by random ones, drawn as the architecture draws them."""
    if not isinstance(net, PreTrainedModel):
        raise NotApplicableError("weights=random works for models of transformers only.")
    net.load_state_dict(type(net)(net.config).state_dict())
