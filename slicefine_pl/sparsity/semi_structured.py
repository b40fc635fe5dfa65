"""Convert the 2:4 linear layers of a network to torch's semi-structured sparse tensors, and time both networks.

    sparse, report = export_semi_structured(net.half().cuda(), example)
    print(report)  # which layers were converted, and the time of a forward pass of both

A semi-structured tensor stores two of every four weights along the inputs and two bits for the position of each. The
sparse tensor cores of NVIDIA GPUs multiply it, from compute capability 8.0 (Ampere) on. Whether that is faster depends
on sizes, batch and software. So both networks are timed on the given batch.

Sizes that torch 2.15 requires of a contiguous weight of two dimensions (``torch/sparse/semi_structured.py``):

| backend | float16, bfloat16 | int8 | float32 |
|---|---|---|---|
| cuSPARSELt, the default of ``to_sparse_semi_structured`` | multiples of 16 | of 32 | not supported |
| CUTLASS, if ``SparseSemiStructuredTensor._FORCE_CUTLASS`` | rows of 32, columns of 64 | 16, 128 | 32, 32; 1:2 only |

Only float16 and bfloat16 are converted. Torch pads a batch whose sizes are not multiples of 8 at every call.

**Not run on a GPU by us yet (2026-11-24).** The choice of layers, the refusals and the arithmetic of the report are
tested on a CPU with a replacement for torch's conversion. ``tests/sparsity/test_semi_structured.py`` has a GPU test.

Source:  torch.sparse; Mishra et al., Accelerating Sparse Deep Neural Networks, arXiv:2104.08378, for the hardware.
"""

import copy
import statistics
import time
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.sparse import (
    SparseSemiStructuredTensor,
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
    to_sparse_semi_structured,
)
from torch.utils._pytree import tree_leaves

from slicefine_pl.network.names import shortlist
from slicefine_pl.sparsity.detect import is_two_four
from slicefine_pl.sparsity.positions import Example, call, evaluating

HALVES = (torch.float16, torch.bfloat16)
WARM_UP = 5


@dataclass(frozen=True)
class Times:
    """Times of forward passes.

    Attributes:
        ms: Milliseconds, in the order of measurement.
    """

    ms: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median, in milliseconds."""
        return statistics.median(self.ms)

    @property
    def spread(self) -> tuple[float, float]:
        """16th and 84th percentile, in milliseconds."""
        ordered, last = sorted(self.ms), len(self.ms) - 1
        return ordered[round(0.16 * last)], ordered[round(0.84 * last)]

    def __str__(self) -> str:
        return f"{self.median:.3f} ms ({self.spread[0]:.3f}-{self.spread[1]:.3f})"


@dataclass(frozen=True)
class SemiStructuredReport:
    """Which layers were converted, and how long a forward pass takes before and after.

    Attributes:
        converted: Names of the converted layers.
        kept: Reason why a linear layer stays dense, by name.
        dense: Forward passes of the original network.
        sparse: Forward passes of the converted copy; each was timed right after one of the original.
        difference: Largest absolute difference between the outputs of both networks.
        largest: Largest absolute output of the original network, for comparison with ``difference``.
        device: Name of the GPU.
    """

    converted: tuple[str, ...]
    kept: dict[str, str]
    dense: Times
    sparse: Times
    difference: float
    largest: float
    device: str

    @property
    def ratio(self) -> float:
        """Median over the rounds of sparse time divided by dense time; below 1 if the converted copy was faster."""
        return statistics.median(s / d for s, d in zip(self.sparse.ms, self.dense.ms, strict=True))

    def __str__(self) -> str:
        reasons = Counter(self.kept.values())
        kept = "".join(f"\n  {count} dense: {reason}" for reason, count in reasons.most_common())
        return (
            f"{len(self.converted)} linear layers as 2:4 tensors, {len(self.kept)} dense.{kept}\n"
            f"Forward pass, {len(self.dense.ms)} alternating rounds on {self.device}: dense {self.dense},"
            f" 2:4 {self.sparse}, 2:4 / dense {self.ratio:.3f}.\n"
            f"Largest output difference {self.difference:.3g}, of outputs up to {self.largest:.3g}."
        )


def export_semi_structured(
    net: nn.Module, example: Example, rounds: int = 20
) -> tuple[nn.Module, SemiStructuredReport]:
    """Copy a network, convert its 2:4 linear layers to semi-structured sparse tensors, and time both networks.

    Args:
        net: Network in float16 or bfloat16 on a GPU; unchanged.
        example: Batch to time, on the same GPU: a tensor, a sequence of positional arguments, or a mapping of keyword
            arguments.
        rounds: Timed forward passes of each network, alternating, after five untimed ones.

    Returns:
        The converted copy, in eval mode and for inference only (its converted weights have no gradient), and the
        report.

    Raises:
        RuntimeError: No GPU supports 2:4 tensors, or the network is not on a GPU.
        ValueError: ``rounds`` is below 1, or no layer can be converted.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} is too small to measure; choose at least 1.")
    device = _device(net)
    reasons = {name: obstacle(net, layer) for name, layer in linears(net)}
    converted = tuple(name for name, reason in reasons.items() if reason is None)
    kept = {name: reason for name, reason in reasons.items() if reason is not None}
    if not converted:
        found = shortlist((f"{name} ({reason})" for name, reason in kept.items()), none="no linear layer")
        raise ValueError(f"no layer can be converted to a 2:4 tensor: this network has {found}.")
    sparse = copy.deepcopy(net).eval()
    for name in converted:
        layer = sparse.get_submodule(name)
        layer.weight = nn.Parameter(to_sparse_semi_structured(layer.get_parameter("weight").detach()), False)
    return sparse, _compare(net, sparse, example, rounds, converted, kept, device)


def linears(net: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Return the names and modules of all linear layers."""
    return [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Linear)]


def obstacle(net: nn.Module, layer: nn.Linear) -> str | None:
    """Return why a linear layer of the network cannot be converted; ``None`` if it can. A bias may be present."""
    weight = layer._parameters.get("weight")
    if weight is None or type(layer).forward is not nn.Linear.forward:
        return f"{type(layer).__name__} has its own forward()"
    if sum(weight is other for module in net.modules() for other in module._parameters.values()) > 1:
        return "its weight is tied to another layer"
    if any(layer is module.out_proj for module in net.modules() if isinstance(module, nn.MultiheadAttention)):
        return "torch's attention reads its weight without a call"
    if weight.dtype not in HALVES:
        return f"its type is {str(weight.dtype).removeprefix('torch.')}, not float16 or bfloat16"
    rows, columns = _edges(weight.dtype)
    if weight.shape[0] % rows or weight.shape[1] % columns:
        return f"its shape {tuple(weight.shape)} is not divisible by ({rows}, {columns})"
    return None if is_two_four(weight.detach() != 0) else "its zeros are not 2:4 along the inputs"


def _edges(dtype: torch.dtype) -> tuple[int, int]:
    """Return the required multiples of rows and columns, from the constraints of torch's active backend."""
    cutlass = SparseSemiStructuredTensor._FORCE_CUTLASS
    backend = SparseSemiStructuredTensorCUTLASS if cutlass else SparseSemiStructuredTensorCUSPARSELT
    limits = backend._DTYPE_SHAPE_CONSTRAINTS[dtype]
    return limits.sparse_min_rows, limits.sparse_min_cols


def _device(net: nn.Module) -> torch.device:
    """Return the GPU of the network.

    Raises:
        RuntimeError: The network is not on a GPU, or the GPU does not have sparse tensor cores.
    """
    fallback = "or use the plain model, which computes the same at the cost of a dense one"
    needed = "2:4 tensors need an NVIDIA GPU of compute capability 8.0 or newer (Ampere, Ada, Hopper)"
    if not torch.cuda.is_available():
        raise RuntimeError(f"{needed}, and torch finds no CUDA device; run this on such a GPU, {fallback}.")
    device = next(net.parameters()).device
    if device.type != "cuda":
        raise RuntimeError(f"{needed}, and the network is on {device}; move it and the example to 'cuda'.")
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        name = torch.cuda.get_device_name(device)
        raise RuntimeError(f"{needed}, and {name} has {major}.{minor}; use a newer GPU, {fallback}.")
    return device


def _compare(
    net: nn.Module,
    sparse: nn.Module,
    example: Example,
    rounds: int,
    converted: tuple[str, ...],
    kept: dict[str, str],
    device: torch.device,
) -> SemiStructuredReport:
    with evaluating(net, sparse):
        pairs = [
            (a.float(), b.float())
            for a, b in zip(tree_leaves(call(net, example)), tree_leaves(call(sparse, example)), strict=True)
            if isinstance(a, Tensor) and a.is_floating_point() and a.numel()
        ]
        times = [(_ms(net, example, device), _ms(sparse, example, device)) for _ in range(WARM_UP + rounds)][WARM_UP:]
    return SemiStructuredReport(
        converted,
        kept,
        Times(tuple(dense for dense, _ in times)),
        Times(tuple(other for _, other in times)),
        difference=max((float((a - b).abs().max()) for a, b in pairs), default=0.0),
        largest=max((float(a.abs().max()) for a, _ in pairs), default=0.0),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    )


def _ms(net: nn.Module, example: Example, device: torch.device) -> float:
    """Return the milliseconds of one forward pass, including the wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call(net, example)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - start)
