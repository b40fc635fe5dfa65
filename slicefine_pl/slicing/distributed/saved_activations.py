"""What autograd keeps from the forward to the backward pass, beyond the parameters: the activations."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Activations:
    """The storages that autograd has kept; see :func:`count_activations`."""

    def __init__(self) -> None:
        self._kept: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """Their sizes together, in bytes, each storage once."""
        return sum(self._kept.values())

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor, unless it is a parameter or a view of one; returns it."""
        if not any(isinstance(each, nn.Parameter) for each in (tensor, tensor._base)):
            storage = tensor.untyped_storage()
            self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor


@contextmanager
def count_activations() -> Iterator[Activations]:
    """Count what the forward passes within keep for their backward passes.

    With activation checkpointing that is what is kept until then, not what is computed again.
    """
    activations = Activations()
    with torch.autograd.graph.saved_tensors_hooks(activations.add, lambda tensor: tensor):
        yield activations
