"""What does a 2:4 network gain on this GPU, held as torch's semi-structured sparse tensors?

    sparse, report = export_semi_structured(net.half().cuda(), example)
    print(report)  # which layers, and the time of a forward pass of both

Two of each four weights along the inputs are stored, with two bits for the place of each, and multiplied by the sparse
tensor cores of NVIDIA's GPUs from compute capability 8.0 (Ampere) on.  Whether that is faster depends on sizes, batch
and software.  So both are timed on the batch at hand, and nothing is promised.

What torch 2.15 demands of a weight (``torch/sparse/semi_structured.py``), besides CUDA, two dimensions and contiguity:

| backend | float16, bfloat16 | int8 | float32 |
|---|---|---|---|
| cuSPARSELt, which ``to_sparse_semi_structured`` takes | rows and columns divide by 16 | by 32 | not at all |
| CUTLASS, if ``SparseSemiStructuredTensor._FORCE_CUTLASS`` | rows by 32, columns by 64 | 16, 128 | 32, 32; but 1:2 |

Converted here are float16 and bfloat16 alone; a batch whose sizes do not divide by 8 is padded by torch at each call.

**Not run on a GPU by us yet (2026-11-24).**  Choice of layers, refusals and the arithmetic of the report are tested on
a CPU with a stand-in for torch's conversion; ``tests/sparsity/test_semi_structured.py`` has a test for a GPU.

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

from slicefine_pl.sparsity.detect import is_two_four
from slicefine_pl.sparsity.positions import Example, call, evaluating
from slicefine_pl.sparsity.targets import some

HALVES = (torch.float16, torch.bfloat16)
WARM_UP = 5


@dataclass(frozen=True)
class Times:
    """Milliseconds of forward passes, in the order they were measured."""

    ms: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.ms)

    @property
    def spread(self) -> tuple[float, float]:
        """The 16th and the 84th percentile."""
        ordered, last = sorted(self.ms), len(self.ms) - 1
        return ordered[round(0.16 * last)], ordered[round(0.84 * last)]

    def __str__(self) -> str:
        return f"{self.median:.3f} ms ({self.spread[0]:.3f}-{self.spread[1]:.3f})"


@dataclass(frozen=True)
class SemiStructuredReport:
    """What was converted, and what it brought.

    Attributes:
        converted: Names of the layers held as semi-structured tensors.
        kept: Names of the linear layers that stay dense, and the reason.
        dense: Forward passes of the network as it was.
        sparse: Those of the copy, each measured right after its dense neighbour.
        difference: Largest absolute difference between the outputs of the two.
        largest: Largest absolute value of a dense output, to compare it with.
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
        """Median over the rounds of sparse time by dense time: below 1 it was faster here."""
        return statistics.median(s / d for s, d in zip(self.sparse.ms, self.dense.ms, strict=True))

    def __str__(self) -> str:
        reasons = Counter(self.kept.values())
        kept = "".join(f"\n  {count} dense: {reason}" for reason, count in reasons.most_common())
        return (
            f"{len(self.converted)} linear layers as 2:4 tensors, {len(self.kept)} dense.{kept}\n"
            f"Forward pass, {len(self.dense.ms)} rounds in turns on {self.device}: dense {self.dense},"
            f" 2:4 {self.sparse}, 2:4 / dense {self.ratio:.3f}.\n"
            f"Largest output difference {self.difference:.3g}, of outputs up to {self.largest:.3g}."
        )


def export_semi_structured(
    net: nn.Module, example: Example, rounds: int = 20
) -> tuple[nn.Module, SemiStructuredReport]:
    """Copy a network with its 2:4 linear layers as semi-structured sparse tensors, and time both.

    Args:
        net: In float16 or bfloat16, on a GPU; unchanged.
        example: The batch to time, there too: a tensor, a tuple of arguments, or a mapping of named ones.
        rounds: Timed forward passes of each, in turns, after five untimed ones.

    Returns:
        The copy, in eval mode and for inference alone: its converted weights take no gradient; and the report.

    Raises:
        RuntimeError: There is no GPU that can, or the network is not on it.
        ValueError: The rounds are none, or no layer can be converted.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} measures nothing; choose at least 1.")
    device = _device(net)
    reasons = {name: obstacle(net, layer) for name, layer in linears(net)}
    converted = tuple(name for name, reason in reasons.items() if reason is None)
    kept = {name: reason for name, reason in reasons.items() if reason is not None}
    if not converted:
        told = some((f"{name} ({reason})" for name, reason in kept.items()), none="no linear layer")
        raise ValueError(f"nothing can be held as a 2:4 tensor: this network has {told}.")
    sparse = copy.deepcopy(net).eval()
    for name in converted:
        layer = sparse.get_submodule(name)
        layer.weight = nn.Parameter(to_sparse_semi_structured(layer.get_parameter("weight").detach()), False)
    return sparse, _compare(net, sparse, example, rounds, converted, kept, device)


def linears(net: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linear layers of a network, by name."""
    return [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Linear)]


def obstacle(net: nn.Module, layer: nn.Linear) -> str | None:
    """Why a layer of the network cannot be converted; ``None`` if it can.  A bias is no obstacle."""
    weight = layer._parameters.get("weight")
    if weight is None or type(layer).forward is not nn.Linear.forward:
        return f"{type(layer).__name__} computes in a way of its own"
    if sum(weight is other for module in net.modules() for other in module._parameters.values()) > 1:
        return "its weight is tied to another layer"
    if any(layer is module.out_proj for module in net.modules() if isinstance(module, nn.MultiheadAttention)):
        return "torch's attention reads its weight past the layer"
    if weight.dtype not in HALVES:
        return f"its type is {str(weight.dtype).removeprefix('torch.')}, not float16 or bfloat16"
    rows, columns = _edges(weight.dtype)
    if weight.shape[0] % rows or weight.shape[1] % columns:
        return f"its shape {tuple(weight.shape)} does not divide by ({rows}, {columns})"
    return None if is_two_four(weight.detach() != 0) else "its zeros are not 2:4 along the inputs"


def _edges(dtype: torch.dtype) -> tuple[int, int]:
    """What the sizes of a weight must divide by, as the backend that torch will take says itself."""
    cutlass = SparseSemiStructuredTensor._FORCE_CUTLASS
    backend = SparseSemiStructuredTensorCUTLASS if cutlass else SparseSemiStructuredTensorCUSPARSELT
    limits = backend._DTYPE_SHAPE_CONSTRAINTS[dtype]
    return limits.sparse_min_rows, limits.sparse_min_cols


def _device(net: nn.Module) -> torch.device:
    """The GPU of the network.

    Raises:
        RuntimeError: It has none, or one without sparse tensor cores.
    """
    meanwhile = "until then ship the plain model: its zeros are right everywhere, and cost what a dense model costs"
    needed = "2:4 tensors need an NVIDIA GPU of compute capability 8.0 or newer (Ampere, Ada, Hopper)"
    if not torch.cuda.is_available():
        raise RuntimeError(f"{needed}, and torch sees no CUDA device here; run this there, and {meanwhile}.")
    device = next(net.parameters()).device
    if device.type != "cuda":
        raise RuntimeError(f"{needed}, and the network is on {device}; move it and the example to 'cuda'.")
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        name = torch.cuda.get_device_name(device)
        raise RuntimeError(f"{needed}, and {name} has {major}.{minor}; use a newer one, and {meanwhile}.")
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
    """Milliseconds of one forward pass, until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call(net, example)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - start)
