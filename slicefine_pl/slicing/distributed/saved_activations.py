"""Measure the memory of saved activations: tensors that autograd keeps for the backward pass, without parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Activations:
    """The storages that autograd has saved; see :func:`count_activations`."""

    def __init__(self) -> None:
        self._kept: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """Total size in bytes. Tensors that share a storage count once."""
        return sum(self._kept.values())

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor, unless it is a parameter or a view of one. Returns the tensor."""
        if not any(isinstance(each, nn.Parameter) for each in (tensor, tensor._base)):
            storage = tensor.untyped_storage()
            self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor


@contextmanager
def count_activations() -> Iterator[Activations]:
    """Count the activations that forward passes inside the context save for their backward passes.

    With activation checkpointing, recomputed activations do not count.
    """
    activations = Activations()
    with torch.autograd.graph.saved_tensors_hooks(activations.add, lambda tensor: tensor):
        yield activations
