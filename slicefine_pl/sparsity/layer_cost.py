"""What does one matrix cost: FLOPs and bytes, dense and by what its zeros allow?

**FLOPs**, two for each product of a weight with an input.  ``dense``: of every weight.  ``ideal``: of the non-zero
ones.  ``real``: what sparse tensor cores can do; half of dense for linear maps and attention whose zeros are 2:4 along
the inputs, all of dense elsewhere.  Training is three times forward: forward, gradient of the input, gradient of the
weight.  Sparse tensor cores help its forward pass alone: the transposed weight is not 2:4 in general, and the gradient
of the weight is a product of dense matrices.

**Bytes** of U weights of b bytes each, of which Z are not zero, in an (O, I) matrix: ``dense`` U b; ``bitmask``
Z b + U/8; ``compressed`` (2:4) U b/2 + U/8, half the values and two bits for the place of each, 9/16 of dense at two
bytes; ``csr`` Z (b + 2) + 4 (O + 1), with column indices of four bytes beyond 65,536 columns, and row pointers of eight
from 2^31 weights on.  What a format does not make smaller it keeps dense, matrix by matrix.

Shapes:  O outputs · I inputs, times the places of a convolution's kernel
Source:  ours; held to torch's FLOP counter, torch's and scipy's sparse tensors in tests/sparsity/test_cost_report.py.
"""

import math
from dataclasses import astuple, dataclass
from typing import Literal, Self

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from slicefine_pl.sparsity.detect import fits_2_of_4, pattern_present
from slicefine_pl.sparsity.targets import Prunable

Kind = Literal["linear", "attention", "convolution", "embedding", "other"]
BACKWARD = 2  # passes of forward's size: the gradient of the input, and that of the weight


@dataclass(frozen=True)
class Flops:
    """FLOPs of one pass: of all weights, of the non-zero ones, and as sparse tensor cores can do it."""

    dense: int = 0
    ideal: int = 0
    real: int = 0

    def __add__(self, other: Self) -> "Flops":
        return Flops(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def training(self) -> "Flops":
        """Those of a training step whose forward pass this is."""
        return Flops((1 + BACKWARD) * self.dense, (1 + BACKWARD) * self.ideal, self.real + BACKWARD * self.dense)


@dataclass(frozen=True)
class Stored:
    """Bytes in each format: dense, bits and non-zeros, 2:4 compressed, compressed sparse rows."""

    dense: int = 0
    bitmask: int = 0
    compressed: int = 0
    csr: int = 0

    def __add__(self, other: Self) -> "Stored":
        return Stored(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Entry:
    """One matrix, or all parameters that are none.

    Attributes:
        name: Of the parameter.
        kind: Of its layer.
        shape: ``(O, I, ...)``, also where it is stored transposed.
        dtype: As torch names it.
        parameters: How many.
        nonzero: How many are not zero.
        pattern: See :func:`pattern_present`.
        forward: FLOPs of a forward pass.
        stored: Bytes; none if an earlier entry has the same tensor.
        tied_to: Name of that entry.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    nonzero: int
    pattern: str
    forward: Flops
    stored: Stored
    tied_to: str | None = None

    @property
    def sparsity(self) -> float:
        """Share of the parameters that are zero."""
        return 1 - self.nonzero / self.parameters if self.parameters else 0.0

    @property
    def pruned(self) -> bool:
        """Whether it has a pattern of zeros."""
        return self.pattern != "dense"


def entry_of(each: Prunable, uses: tuple[int, ...], tied_to: str | None = None) -> Entry:
    """Count one matrix.

    Args:
        each: The matrix.
        uses: Positions that each equal part of its outputs sees in a forward pass.
        tied_to: Name of an earlier entry of the same tensor.
    """
    values = each.matrix(each.parameter.detach())
    mask = values != 0
    kind, fits = kind_of(each), fits_2_of_4(mask)
    parts = [(positions, part) for positions, part in zip(uses, mask.chunk(len(uses)), strict=True)]
    dense = sum(2 * positions * part.numel() for positions, part in parts)
    return Entry(
        name=each.name,
        kind=kind,
        shape=tuple(values.shape),
        dtype=str(values.dtype).removeprefix("torch."),
        parameters=values.numel(),
        nonzero=int(mask.count_nonzero()),
        pattern=pattern_present(mask),
        forward=Flops(
            dense,
            sum(2 * positions * int(part.count_nonzero()) for positions, part in parts),
            dense // 2 if fits and kind in ("linear", "attention") else dense,
        ),
        stored=Stored() if tied_to else stored(values, fits),
        tied_to=tied_to,
    )


def rest_of(parameters: list[nn.Parameter]) -> Entry:
    """Count all that is no matrix of a known layer, as one: it is stored dense, and its FLOPs are not counted."""
    numbers, size = sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
    nonzero = sum(int(p.detach().count_nonzero()) for p in parameters)
    return Entry(
        name="all others",
        kind="other",
        shape=(),
        dtype=", ".join(kinds),
        parameters=numbers,
        nonzero=nonzero,
        pattern="dense",
        forward=Flops(),
        stored=Stored(size, size, size, size),
    )


def kind_of(each: Prunable) -> Kind:
    """What a layer does with its weight."""
    if each.embedding:
        return "embedding"
    if isinstance(each.module, nn.MultiheadAttention):
        return "attention"
    return "convolution" if isinstance(each.module, _ConvNd) else "linear"


def stored(values: Tensor, fits: bool) -> Stored:
    """Bytes of a matrix, shape ``(O, I, ...)``; ``fits`` says whether it is 2:4."""
    rows, columns = len(values), math.prod(values.shape[1:])
    weights, size, kept = values.numel(), values.element_size(), int(values.count_nonzero())
    dense, bits = weights * size, math.ceil(weights / 8)
    pointer, index = 4 if kept < 2**31 else 8, 2 if columns <= 65_536 else 4
    return Stored(
        dense,
        min(dense, kept * size + bits),
        min(dense, weights // 2 * size + bits) if fits else dense,
        min(dense, kept * (size + index) + (rows + 1) * pointer),
    )
