"""What a method keeps in memory and on disk, in bytes.

Counted from tensors, so that it is the same on every machine: parameters and buffers, gradients, what AdamW remembers,
and what autograd saves from forward to backward.  Their sum is an upper estimate of the peak: gradients grow while what
was saved is freed.  On a GPU the allocator tells the peak itself; for a CPU see ``resident.py``.
"""

import weakref
from collections.abc import Iterable

import torch
from contestants import Contestant
from torch import Tensor


class _Saved:
    """A tensor that autograd holds on to; it goes when autograd lets go."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_bytes(contestant: Contestant) -> int:
    """Bytes that wait for the backward pass once the loss is known, beyond parameters and buffers.

    What autograd saved and has dropped again by then, as for the norms of DoRA's weights, does not count.
    """
    handed: list[weakref.ref[_Saved]] = []

    def pack(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        handed.append(weakref.ref(saved))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        loss = contestant.loss()
    own = storages(_state(contestant))
    kept = storages(saved.tensor for saved in (each() for each in handed) if saved is not None)
    loss.backward()  # type: ignore[no-untyped-call]
    contestant.task.net.zero_grad(set_to_none=True)
    return sum(size for place, size in kept.items() if place not in own)


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """The bytes of each storage, by its address."""
    found = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def _state(contestant: Contestant) -> list[Tensor]:
    return [*contestant.task.net.parameters(), *contestant.task.net.buffers()]


def parameter_bytes(contestant: Contestant) -> int:
    """Parameters and buffers, adapters and live slices included."""
    return sum(storages(_state(contestant)).values())


def gradient_bytes(contestant: Contestant) -> int:
    return sum(parameter.nbytes for parameter in contestant.trained())


def optimizer_bytes(contestant: Contestant) -> int:
    states = [] if contestant.optimizer is None else contestant.optimizer.state.values()
    return sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))


def checkpoint_bytes(contestant: Contestant) -> int:
    """What a user of the method stores for each task, without optimizer state.

    Of adapters, biases and heads what was trained; VeRA's frozen matrices follow from their seed.  A sliced network is
    stored whole, as a network that was trained in full.
    """
    if contestant.method.saves_all:
        return sum(storages(contestant.task.net.state_dict().values()).values())
    return gradient_bytes(contestant)
