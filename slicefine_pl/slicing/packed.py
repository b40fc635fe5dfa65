"""Matrices that cannot be sliced: quantised, packed or compiled weights.

Answers: what multiplies inputs in this network although no parameter of floating-point numbers holds it?  Covers the
quantised layers of ``torch.ao``, integer buffers as in GPTQ and AWQ, and modules compiled by ``torch.jit``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

CODES = (torch.int8, torch.uint8, torch.int32)  # what quantised weights are packed in; masks and positions are not
TRAINABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix that cannot be trained.

    Attributes:
        name: Of its layer, or of the layer's buffer or compiled parameter.
        size: Its entries.
        reason: Why it cannot be trained.
        parameter: Whether ``net.parameters()`` lists it all the same.
    """

    name: str
    size: int
    reason: str
    parameter: bool = False


def packed_matrices(net: nn.Module) -> Iterator[PackedMatrix]:
    """All of them, in the order of ``net.named_modules()``."""
    for name, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            yield from (
                PackedMatrix(
                    _joined(name, key), each.numel(), "compiled by torch.jit, so that its class is fixed", True
                )
                for key, each in module._parameters.items()
                if each is not None and each.ndim > 1
            )
            continue
        leaf = next(module.children(), None) is None
        for key, buffer in module._buffers.items():
            if leaf and buffer is not None and _is_weight(key, buffer):
                yield PackedMatrix(_joined(name, key), count_entries(module, buffer), untrainable_reason(buffer))
        for value in vars(module).values():
            if isinstance(value, torch.ScriptObject) and hasattr(value, "__getstate__"):
                for weight in _unpacked(value):
                    yield PackedMatrix(_layer(name), weight.numel(), untrainable_reason(weight))


def count_entries(layer: nn.Module, stored: Tensor) -> int:
    """Entries of what a layer stores; several may share a number in its largest packed tensor, but widths tell."""
    inputs, outputs = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    held = [*layer._parameters.values(), *layer._buffers.values()]
    packed = [each.numel() for each in held if each is not None and each.dtype not in TRAINABLE]
    if isinstance(inputs, int) and isinstance(outputs, int) and stored.numel() == max(packed, default=0):
        return inputs * outputs
    return stored.numel()


def can_be_trained(stored: Tensor) -> bool:
    """Whether it holds plain numbers of a type that optimizers update; torchao's tensors, for instance, do not."""
    plain = type(stored).__torch_dispatch__ is Tensor.__torch_dispatch__
    return stored.dtype in TRAINABLE and plain


def untrainable_reason(stored: Tensor) -> str:
    """Why, in words: its type, its class, or that it is a buffer."""
    if stored.dtype not in TRAINABLE:
        return f"{stored.dtype} cannot be trained"
    return (
        f"a {type(stored).__name__} cannot be trained" if not can_be_trained(stored) else "a buffer cannot be trained"
    )


def _is_weight(key: str, buffer: Tensor) -> bool:
    codes = buffer.dtype in CODES or buffer.is_quantized or (buffer.is_floating_point() and not can_be_trained(buffer))
    return buffer.squeeze().ndim > 1 and (codes or key == "weight")


def _unpacked(packed: Any) -> Iterator[Tensor]:
    """The matrices in an object of ``torch.classes``; that of a recurrent layer contains one for each linear map."""
    for leaf in tree_leaves(packed.__getstate__()):
        if isinstance(leaf, torch.ScriptObject):
            yield from _unpacked(leaf)
        elif isinstance(leaf, Tensor) and leaf.ndim > 1:
            yield leaf


def _layer(name: str) -> str:
    """The layer to which a module of packed parameters belongs: the path up to the first private name."""
    parts = name.split(".")
    private = next((place for place, part in enumerate(parts) if part.startswith("_")), len(parts))
    return ".".join(parts[:private])


def _joined(*parts: str) -> str:
    return ".".join(filter(None, parts))
