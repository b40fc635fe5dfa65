"""Sliced layers that compute as their dense class does. The slice takes its part of the dense weight gradient.

These layers read their parameters through the properties of ``readers.py``. Recurrent layers need more: torch's read
their weights once, and keep them in a list.
"""

import weakref
from typing import Any

from torch import Tensor, nn

from slicefine_pl.slicing.layers.base import SlicedLayer


class MaskedLayer(SlicedLayer):
    """Any module. It computes as its dense class does, and reads its sliced parameters through their properties."""


class MaskedRecurrent(MaskedLayer):
    """``torch.nn.LSTM``, ``GRU`` and ``RNN``. The list of weights is read again for each forward pass.

    It is reset afterwards, because tensors with a gradient function can be neither copied nor pickled.
    """

    _flat_weights_names: list[str]
    _flat_weights: list[Tensor | None]
    _flat_weight_refs: list[weakref.ref[Tensor] | None]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._flat_weights = [getattr(self, name, None) for name in self._flat_weights_names]
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._init_flat_weights()

    def _init_flat_weights(self) -> None:
        self._flat_weights = [self._parameters.get(name) for name in self._flat_weights_names]
        self._flat_weight_refs = [None if weight is None else weakref.ref(weight) for weight in self._flat_weights]

    def _update_flat_weights(self) -> None:
        """Do nothing: ``forward`` has updated the list."""


def masked_class(module: nn.Module) -> type[MaskedLayer]:
    """The masked class of sliced layer for a module."""
    return MaskedRecurrent if isinstance(module, nn.RNNBase) else MaskedLayer
