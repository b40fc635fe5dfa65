"""Sliced layers that compute as their dense classes do: the dense gradient is formed, and the slice takes its part.

A parameter that the layer reads stands behind a reader (see ``layer.py``); torch's recurrent layers need help, because
they read their weights once and keep the list.
"""

import weakref
from typing import Any

from torch import Tensor, nn

from slicefine_pl.slicing.layers.base import SlicedLayer


class MaskedLayer(SlicedLayer):
    """Any module: computes as its dense class does, reading its sliced parameters through their readers."""


class MaskedRecurrent(MaskedLayer):
    """``torch.nn.LSTM``, ``GRU`` and ``RNN``: readers stand in the list of weights during a forward pass only.

    Kept beyond it, they could be neither copied nor pickled.
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
        """Leave the list as it is: ``forward`` has brought it up to date."""


def masked_class(module: nn.Module) -> type[MaskedLayer]:
    """The masked kind of a module."""
    return MaskedRecurrent if isinstance(module, nn.RNNBase) else MaskedLayer
