"""Apply pruning masks where slices are open and only a few lines of a pruned weight are trained."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from slicefine_pl.network.names import shortlist
from slicefine_pl.slicing.layers.base import SlicedLayer
from slicefine_pl.slicing.slice import Slice
from slicefine_pl.slicing.view import SliceView
from slicefine_pl.sparsity import NetworkMasks


class MaskedSlices:
    """The open slices of a network that lie in pruned weights; a :class:`slicefine_pl.slicing.MoveListener`.

    Args:
        net: The network; its slices are open.
        masks: The masks of its weights.
        optimizers: The optimizers that update the slices.
    """

    def __init__(self, net: nn.Module, masks: NetworkMasks, optimizers: Sequence[Optimizer]) -> None:
        self._masks = masks
        self._optimizers = optimizers
        layers = ((path, module) for path, module in net.named_modules() if isinstance(module, SlicedLayer))
        found = ((".".join(filter(None, [path, slice_.layout.parameter])), layer, slice_)
                 for path, layer in layers for slice_ in layer.slicefine_slices())  # fmt: skip
        self._found: list[tuple[str, SlicedLayer, Slice]] = [each for each in found if each[0] in masks]
        if along := [name for name, _, slice_ in self._found if slice_.basis != "standard"]:
            raise ValueError(
                f"The slices of {shortlist(along)} lie along directions and change all weights, so that pruned ones"
                " would not stay zero; choose basis='standard'."
            )

    def __iter__(self) -> Iterator[Slice]:
        return (slice_ for _, _, slice_ in self._found)

    def __len__(self) -> int:
        return len(self._found)

    def write(self) -> None:
        """Write the slices to the pruned weights, before these are scored."""
        for _, layer, slice_ in self._found:
            slice_.write(layer.slicefine_shard(slice_), slice_.lines())

    def update_masks(self) -> None:
        """Give the slices the current masks; a slice applies its mask wherever it moves."""
        for name, _, slice_ in self._found:
            slice_.pruning_mask = slice_.layout.view(self._masks[name])

    def apply_masks(self) -> None:
        """Apply the current masks to the slices' values and to the optimizers' state of them."""
        self.update_masks()
        self.write()
        for slice_ in self:
            self._mask_optimizer_state(slice_)

    def before_move(self, slices: Sequence[SliceView]) -> None:
        """Do nothing: slices that move have written their zeros."""

    def after_move(self, slices: Sequence[SliceView]) -> None:
        """Clear the optimizers' state of the earlier position where the mask prunes the new one."""
        arrived = {id(view.parameter) for view in slices}
        for slice_ in self:
            if id(slice_.trainable) in arrived and slice_.pruning_mask is not None:
                self._mask_optimizer_state(slice_)

    def _mask_optimizer_state(self, slice_: Slice) -> None:
        states = (optimizer.state.get(slice_.trainable, {}) for optimizer in self._optimizers)
        for value in (value for state in states for value in state.values()):
            if isinstance(value, Tensor) and value.shape == slice_.trainable.shape:
                value.masked_fill_(slice_.pruned_entries(), 0)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradients of pruned values to zero."""
        for slice_ in self:
            if slice_.trainable.grad is not None and slice_.pruning_mask is not None:
                slice_.trainable.grad.masked_fill_(slice_.pruned_entries(), 0)
