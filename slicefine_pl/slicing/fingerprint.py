"""Recognize the weights that a slice file belongs to, by a sum over the bits of every entry.

The sum is exact: it does not depend on the device or on the order of summation, changes with any bit, and may be
updated. A matrix without some of its lines has the fingerprint of the whole minus theirs, which is how it is known at
the end of training that nothing outside the slices has changed.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MODULUS = 1 << 64
# An entry's factor is the product of one number for each of its indices. A factor that is linear in the indices would
# not tell one permutation matrix from another.
SEEDS = (0x1E3779B97F4A7C15, 0x42B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5, 0x05EBCA77C2B2AE63)
BLOCK = 1 << 16  # entries
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an entry


@dataclass(frozen=True)
class Fingerprint:
    """Type, shape, bits and size of a tensor.

    Attributes:
        dtype: Type, such as ``"float32"``.
        shape: Shape.
        bits: The sum over the bits, below 2^64.
        norm: Euclidean norm, of types of one byte that of their codes; shows by how much two tensors differ.
    """

    dtype: str
    shape: tuple[int, ...]
    bits: int
    norm: float

    @classmethod
    def of(cls, tensor: Tensor) -> "Fingerprint":
        """The fingerprint of a tensor."""
        parts = list(_plain_tensors(tensor.detach()))
        dtype = str(tensor.dtype).removeprefix("torch.")
        return cls(dtype, tuple(tensor.shape), _bits(parts), math.hypot(*map(_norm, parts)))

    def fits(self, tensor: Tensor) -> bool:
        """Whether a tensor has the same type, shape and bits. Norms may differ by how they were computed."""
        same = (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) == (self.dtype, self.shape)
        return same and _bits(_plain_tensors(tensor.detach())) == self.bits


def _bits(parts: Iterable[Tensor]) -> int:
    return sum((2 * place + 1) * sum_of_bits(part) for place, part in enumerate(parts)) % MODULUS


def sum_of_bits(values: Tensor, positions: dict[int, Tensor] | None = None) -> int:
    """The sum over all entries of their bits times a number that depends on their position.

    Args:
        values: Any tensor of at most five dimensions.
        positions: For a part of a larger tensor: by dimension, the indices there of the part, where they differ.
    """
    if values.numel() == 0:
        return 0
    bits = values.detach().view(INTEGERS[values.dtype.itemsize])
    if not bits.dim():
        return int(bits) % MODULUS
    indices = ((positions or {}).get(dim, torch.arange(size)) for dim, size in enumerate(bits.shape))
    first, *others = (_factors(dim, each).to(bits.device) for dim, each in enumerate(indices))
    sums = []
    for block in _blocks(bits):
        for factors in reversed(others):
            block = (block * factors).sum(-1)  # int64, which wraps around
        sums.append(block)
    return int((torch.cat(sums) * first).sum()) % MODULUS


def _factors(dim: int, index: Tensor) -> Tensor:
    """Odd numbers without a pattern, one for each index along a dimension, int64."""
    mixed = (index + 1) * SEEDS[dim]
    for _ in range(2):
        mixed = (mixed ^ (mixed >> 29)) * SEEDS[-1]
    return mixed | 1


def _plain_tensors(values: Tensor) -> Iterator[Tensor]:
    """The numbers that a tensor stores, as dense tensors of at most five dimensions.

    Frozen tensors may have any form: quantized, complex, sparse, or of a subclass that consists of several tensors. A
    subclass that does not name them yields nothing; its type and shape have to do.
    """
    if type(values).__torch_dispatch__ is not Tensor.__torch_dispatch__:  # of torchao, for example
        names = values.__tensor_flatten__()[0] if hasattr(values, "__tensor_flatten__") else []
        for name in names:
            yield from _plain_tensors(getattr(values, name))
        return
    if values.is_quantized:
        values = values.int_repr()
    elif values.layout != torch.strided:
        values = values.to_dense()
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    yield values.flatten(4) if values.dim() > 5 else values


def _norm(values: Tensor) -> float:
    codes = values.view(torch.int8) if values.dtype.itemsize == 1 else values
    dtype = torch.promote_types(codes.dtype, torch.float32)
    squares = [block.to(dtype).square().sum() for block in _blocks(codes)]
    return float(torch.stack(squares).double().sum().sqrt()) if squares else 0.0


def _blocks(values: Tensor) -> Iterator[Tensor]:
    """Parts along the first dimension that fit into a cache of the processor: several times faster than the whole."""
    entries = BLOCK if values.device.type == "cpu" else 64 * BLOCK
    rows = max(1, entries // max(1, math.prod(values.shape[1:])))
    yield from torch.split(values, rows) if values.dim() and values.numel() else [values][: values.numel()]


def persistent_tensors(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a network and the buffers that its state dict contains, each once, with their names."""
    yield from net.named_parameters()
    for prefix, module in net.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer
