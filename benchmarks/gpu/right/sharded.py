"""Slices in a network that FSDP2 shards, here over a single process, and activations in CPU memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from benchmarks.gpu.right.measured import Measured, full_precision, line_error, rounding_bound
from benchmarks.gpu.right.training import ROUNDINGS, Training, compare
from benchmarks.harness.results import Row
from slicefine_pl.slicing.distributed.fsdp import shard_model


def sharded(device: str, offload: bool) -> Row:
    """A sharded network learns what an unsharded one learns, over NCCL on a GPU and over Gloo on a CPU.

    Args:
        device: ``"cuda"`` or ``"cpu"``.
        offload: Whether shards, gradients and the optimizer's state stay in CPU memory, which is pinned on a GPU.
    """
    measured = Measured()
    with full_precision(), single_process(device):
        shard = partial(shard_model, mesh=init_device_mesh(device, (1,)), offload=offload)
        for axis in ("column", "row", "alternate"):
            expected = Training(device, writes_manually=True, axis=axis)
            found = Training(device, writes_manually=True, axis=axis, prepare=shard)
            _write_and_move(measured, axis, found, expected)
            found.run()
            expected.run()
            compare(measured, axis, found, expected)
            _compare_places(measured, f"{axis}: parameters elsewhere", found.net, device, offload)
    return measured.result()


def offloaded_activations(device: str) -> Row:
    """Gradients do not depend on whether activations wait in CPU memory, pinned on a GPU, for the backward pass."""
    measured = Measured()
    training = Training(device)
    bound = 2 * rounding_bound(ROUNDINGS, training.longest_sum, torch.float32)
    with full_precision():
        for words in training.batches():
            training.backward(words)
            expected = {view.name: _gradient(view.parameter) for view in training.handle}
            training.optimizer.zero_grad()
            with torch.autograd.graph.save_on_cpu(pin_memory=device == "cuda"):
                training.backward(words)
            for view in training.handle:
                error = line_error(_gradient(view.parameter), expected[view.name].double())
                measured.at_most("error of the gradient", error, bound, view.name)
            training.update()
            training.move()
    return measured.result()


@contextmanager
def single_process(device: str) -> Iterator[None]:
    """A process group of this process alone, which needs no network."""
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        os.environ.setdefault(variable, "lo")
    backend = "nccl" if device == "cuda" else "gloo"
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _write_and_move(measured: Measured, axis: str, found: Training, expected: Training) -> None:
    """Change all slices by hand, write and move them in both networks: every weight must be bit-equal."""
    for training in (found, expected):
        with torch.no_grad():
            for view in training.handle:
                view.parameter.add_(2.0**-10)
        training.handle.write()
        training.move()
    ours, theirs = found.weights(), expected.weights()
    different = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    where = ", ".join(different)
    measured.at_most(f"{axis}: weights that differ after a write and a move", len(different), 0, where)
    unchanged = [view.name for view in expected.handle if not (view.stored != _of(expected, view.stored)).any()]
    measured.at_most(f"{axis}: weights that were not written", len(unchanged), 0, ", ".join(unchanged))


def _of(training: Training, stored: nn.Parameter) -> torch.Tensor:
    [name] = [name for name, parameter in training.net.named_parameters() if parameter is stored]
    return training.start[name]


def _compare_places(measured: Measured, name: str, net: nn.Module, device: str, offload: bool) -> None:
    """Count the parameters that are not sharded, or whose shards are not where they should be."""
    shards = [p.to_local() if isinstance(p, DTensor) else None for p in net.parameters()]
    wrong = [
        shard
        for shard in shards
        if shard is None
        or shard.device.type != ("cpu" if offload else device)
        or (offload and device == "cuda" and not shard.is_pinned())
    ]
    measured.at_most(name, len(wrong), 0)


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    if parameter.grad is None:
        raise AssertionError("A slice has no gradient.")
    return parameter.grad.clone()
