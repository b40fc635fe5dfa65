"""Find matrices that cannot be trained: quantized, packed or compiled weights.

They are not floating-point parameters, yet the network computes with them, so the report of frozen weights must count
them. Covers the quantized layers of ``torch.ao``, integer buffers as in GPTQ and AWQ, and modules compiled by
``torch.jit``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

PACKED_TYPES = (torch.int8, torch.uint8, torch.int32)  # of quantized weights; masks and positions have others
TRAINABLE_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix that cannot be trained.

    Attributes:
        name: Name of its layer, or of the layer's buffer or compiled parameter.
        size: Number of entries.
        reason: Why it cannot be trained.
        is_parameter: Whether ``net.parameters()`` contains it nevertheless.
    """

    name: str
    size: int
    reason: str
    is_parameter: bool = False


def packed_matrices(net: nn.Module) -> Iterator[PackedMatrix]:
    """All packed matrices of a network, in the order of ``net.named_modules()``."""
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
    """The number of matrix entries in a tensor that a layer stores.

    Several entries may be packed into one number of the layer's largest packed tensor; there, the layer's widths count.
    """
    inputs, outputs = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    stored_tensors = [*layer._parameters.values(), *layer._buffers.values()]
    packed = [each.numel() for each in stored_tensors if each is not None and each.dtype not in TRAINABLE_TYPES]
    if isinstance(inputs, int) and isinstance(outputs, int) and stored.numel() == max(packed, default=0):
        return inputs * outputs
    return stored.numel()


def can_be_trained(stored: Tensor) -> bool:
    """Whether it is a plain floating-point tensor, unlike a quantized tensor of torchao, for example."""
    plain = type(stored).__torch_dispatch__ is Tensor.__torch_dispatch__
    return stored.dtype in TRAINABLE_TYPES and plain


def untrainable_reason(stored: Tensor) -> str:
    """Why a stored tensor cannot be trained: its type, its class, or that it is a buffer."""
    if stored.dtype not in TRAINABLE_TYPES:
        return f"{stored.dtype} cannot be trained"
    return (
        f"a {type(stored).__name__} cannot be trained" if not can_be_trained(stored) else "a buffer cannot be trained"
    )


def _is_weight(key: str, buffer: Tensor) -> bool:
    other_float = buffer.is_floating_point() and not can_be_trained(buffer)
    codes = buffer.dtype in PACKED_TYPES or buffer.is_quantized or other_float
    return buffer.squeeze().ndim > 1 and (codes or key == "weight")


def _unpacked(packed: Any) -> Iterator[Tensor]:
    """The matrices in an object of ``torch.classes``; a recurrent layer's contains one for each linear map."""
    for leaf in tree_leaves(packed.__getstate__()):
        if isinstance(leaf, torch.ScriptObject):
            yield from _unpacked(leaf)
        elif isinstance(leaf, Tensor) and leaf.ndim > 1:
            yield leaf


def _layer(name: str) -> str:
    """Name of the layer that owns a module of packed parameters: the path up to the first private name."""
    parts = name.split(".")
    private = next((place for place, part in enumerate(parts) if part.startswith("_")), len(parts))
    return ".".join(parts[:private])


def _joined(*parts: str) -> str:
    return ".".join(filter(None, parts))
