"""Memory and disk space of a training run, in bytes.

Counted from tensors, so that the figures are the same on every machine: parameters and buffers, what slices hold,
gradients, AdamW's state, and what autograd saves between forward and backward. Their sum is an upper estimate of the
peak, because saved tensors are freed while gradients appear. On a GPU the allocator reports the peak itself; for a CPU
see ``rss.py``.
"""

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor

from benchmarks.harness.machine import Clock
from benchmarks.harness.results import Row
from benchmarks.harness.training import TrainingRun


def memory_of(run: TrainingRun, device: str) -> Row:
    """Megabytes (10^6 bytes) of a run; for alternating slices, those of the more expensive direction."""
    saved, peaks = [], []
    for _ in range(2 if run.method.moves else 1):
        saved.append(saved_bytes(run))
        peaks.append(allocator_peak(run) if device == "cuda" else 0)
        if run.moving_slices is not None:
            run.moving_slices.move()
    parts = {
        "saved": max(saved),
        "parameters": parameter_bytes(run),
        "gradients": gradient_bytes(run),
        "optimizer": optimizer_bytes(run),
    }
    sizes = {**parts, "sum": sum(parts.values()), "checkpoint": checkpoint_bytes(run)}
    peak = {"allocator_mb": round(max(peaks) / 1e6, 3) if device == "cuda" else None}
    return {**{f"{name}_mb": round(value / 1e6, 3) for name, value in sizes.items()}, **peak}


class _Saved:
    """A tensor that autograd holds; garbage-collected when autograd releases it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_bytes(run: TrainingRun) -> int:
    """Bytes that autograd holds once the loss is computed, beyond what the network holds between steps.

    Tensors that autograd has released by then do not count, such as those of DoRA's weight norms.
    """
    packed: list[weakref.ref[_Saved]] = []

    def pack(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        packed.append(weakref.ref(saved))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        loss = run.loss()
    own = storages(_state(run))
    held = storages(saved.tensor for saved in (each() for each in packed) if saved is not None)
    loss.backward()  # type: ignore[no-untyped-call]
    run.workload.net.zero_grad(set_to_none=True)
    return sum(size for place, size in held.items() if place not in own)


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of each storage, by its address."""
    found = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def _state(run: TrainingRun) -> list[Tensor]:
    """Parameters, buffers, and what slices keep from step to step, such as their directions."""
    net = run.workload.net
    kept = [value for module in net.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return [*net.parameters(), *net.buffers(), *kept]


def parameter_bytes(run: TrainingRun) -> int:
    """What the network holds between steps: parameters and buffers, adapters and slices included."""
    return sum(storages(_state(run)).values())


def gradient_bytes(run: TrainingRun) -> int:
    return sum(parameter.nbytes for parameter in run.trainable())


def optimizer_bytes(run: TrainingRun) -> int:
    states = [] if run.optimizer is None else run.optimizer.state.values()
    return sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))


def checkpoint_bytes(run: TrainingRun) -> int:
    """What a user stores for each task, without optimizer state.

    For adapters, biases and heads, the trained parameters; VeRA's frozen matrices follow from their seed. A sliced or
    fully trained network is stored whole.
    """
    if run.method.stores_network:
        return sum(storages(run.workload.net.state_dict().values()).values())
    return gradient_bytes(run)


def peak_bytes(run: TrainingRun, device: str) -> int:
    """Peak of one step: the allocator's on a GPU, and on a CPU the sum of all parts, which is an upper estimate."""
    if device == "cuda":
        return allocator_peak(run)
    return saved_bytes(run) + parameter_bytes(run) + gradient_bytes(run) + optimizer_bytes(run)


def allocator_peak(run: TrainingRun) -> int:
    """Peak of one step on a GPU, without what the other runs hold between steps."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    own = parameter_bytes(run) + optimizer_bytes(run)
    others = torch.cuda.memory_allocated() - own
    run.step(Clock("cuda"))
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - others
