"""FLOPs and bytes of one weight matrix, dense and with its zeros left out.

U is the number of weights, Z the number of non-zero weights, b the bytes per weight, and k the number of positions that
the matrix is applied to (see ``positions``).

FLOPs of a forward pass, two per product of a weight with an input:

| field | FLOPs | meaning |
|---|---|---|
| ``dense`` | 2·k·U | every weight is multiplied |
| ``ideal`` | 2·k·Z | only non-zero weights are multiplied |
| ``two_four`` | k·U or 2·k·U | half of dense for linear and attention layers in the 2:4 pattern, else dense |

A training step costs three forward passes: forward, gradient of the input, gradient of the weight. Sparse tensor cores
speed up the forward pass only. The transposed weight is not 2:4 in general, and the gradient of the weight is a
product of two dense matrices.

Bytes of an (O, I) matrix:

| field | bytes | format |
|---|---|---|
| ``dense`` | U·b | every weight |
| ``bitmask`` | Z·b + U/8 | non-zero values and one bit per weight |
| ``two_four`` | U·b/2 + U/8 | half of the values and two bits for the position of each |
| ``csr`` | Z·(b + 2) + 4·(O + 1) | compressed sparse rows |

CSR needs 4 bytes per column index beyond 65,536 columns, and 8 bytes per row pointer from 2^31 non-zeros on. A matrix
that a format does not make smaller is counted as dense in that format.

Shapes:  O outputs · I inputs, times the kernel positions of a convolution
Source:  ours; checked against torch's FLOP counter and sparse tensors of torch and scipy in
         tests/sparsity/test_network_cost.py.
"""

import math
from dataclasses import astuple, dataclass
from typing import Literal, Self

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from slicefine_pl.sparsity.detect import detect_pattern, is_two_four
from slicefine_pl.sparsity.targets import PrunableWeight

LayerKind = Literal["linear", "attention", "convolution", "embedding", "other"]
BACKWARD = 2  # forward passes that a backward pass costs: gradient of the input and gradient of the weight


@dataclass(frozen=True)
class Flops:
    """FLOPs of one pass.

    Attributes:
        dense: With every weight.
        ideal: With non-zero weights only.
        two_four: On 2:4 sparse tensor cores.
    """

    dense: int = 0
    ideal: int = 0
    two_four: int = 0

    def __add__(self, other: Self) -> "Flops":
        return Flops(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def training(self) -> "Flops":
        """Return the FLOPs of a training step with this forward pass."""
        return Flops((1 + BACKWARD) * self.dense, (1 + BACKWARD) * self.ideal, self.two_four + BACKWARD * self.dense)


@dataclass(frozen=True)
class Stored:
    """Bytes in each storage format.

    Attributes:
        dense: Every weight.
        bitmask: Non-zero values and one bit per weight.
        two_four: 2:4 compressed.
        csr: Compressed sparse rows.
    """

    dense: int = 0
    bitmask: int = 0
    two_four: int = 0
    csr: int = 0

    def __add__(self, other: Self) -> "Stored":
        return Stored(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class LayerCost:
    """Cost of one weight matrix, or of all remaining parameters together.

    Attributes:
        name: Parameter name.
        kind: Kind of the layer.
        shape: ``(O, I, ...)``, also if the weight is stored transposed.
        dtype: Name of the type, without ``torch.``.
        parameters: Number of parameters.
        nonzero: Number of non-zero parameters.
        pattern: Pattern of the zeros; see :func:`slicefine_pl.sparsity.detect.detect_pattern`.
        forward: FLOPs of a forward pass.
        stored: Bytes; 0 if another layer already counts the same tensor.
        tied_to: Name of that other weight, or ``None``.
    """

    name: str
    kind: LayerKind
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
        """Fraction of zero parameters, in [0, 1]."""
        return 1 - self.nonzero / self.parameters if self.parameters else 0.0

    @property
    def pruned(self) -> bool:
        """Whether the matrix has a pattern of zeros."""
        return self.pattern != "dense"


def matrix_cost(each: PrunableWeight, positions: tuple[int, ...], tied_to: str | None = None) -> LayerCost:
    """Count one matrix.

    Args:
        each: The matrix.
        positions: Positions of each equal part of its outputs in a forward pass; see
            :func:`slicefine_pl.sparsity.positions.count_positions`.
        tied_to: Name of a weight that shares the tensor and is counted already.
    """
    values = each.matrix(each.parameter.detach())
    mask = values != 0
    kind, fits = layer_kind(each), is_two_four(mask)
    parts = [(count, part) for count, part in zip(positions, mask.chunk(len(positions)), strict=True)]
    dense = sum(2 * count * part.numel() for count, part in parts)
    return LayerCost(
        name=each.name,
        kind=kind,
        shape=tuple(values.shape),
        dtype=str(values.dtype).removeprefix("torch."),
        parameters=values.numel(),
        nonzero=int(mask.count_nonzero()),
        pattern=detect_pattern(mask),
        forward=Flops(
            dense,
            sum(2 * count * int(part.count_nonzero()) for count, part in parts),
            dense // 2 if fits and kind in ("linear", "attention") else dense,
        ),
        stored=Stored() if tied_to else stored(values, fits),
        tied_to=tied_to,
    )


def remaining_cost(parameters: list[nn.Parameter]) -> LayerCost:
    """Count all other parameters together: stored dense, without FLOPs."""
    numbers, size = sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
    nonzero = sum(int(p.detach().count_nonzero()) for p in parameters)
    return LayerCost(
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


def layer_kind(each: PrunableWeight) -> LayerKind:
    """Return the kind of the layer that owns a weight."""
    if each.embedding:
        return "embedding"
    if isinstance(each.module, nn.MultiheadAttention):
        return "attention"
    return "convolution" if isinstance(each.module, _ConvNd) else "linear"


def stored(values: Tensor, fits: bool) -> Stored:
    """Return the bytes of a matrix, shape ``(O, I, ...)``.

    Args:
        values: The matrix.
        fits: Whether it is 2:4 along the inputs.
    """
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
