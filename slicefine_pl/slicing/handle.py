"""Open slices in a network, move them, close them: all that a training loop needs.

    handle = slice_model(net, rank=32)
    optimizer = torch.optim.AdamW((p for p in net.parameters() if p.requires_grad), lr=2e-3)
    for step, (x, y) in enumerate(batches, start=1):
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()
        if step % 100 == 0:
            for moved in handle.move():
                optimizer.state.pop(moved.parameter, None)
    handle.close()

Source:  Kowsher et al., SliceFine, arXiv:2510.08513.
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from slicefine_pl.network.names import NamePatterns
from slicefine_pl.slicing.cursor import SliceCursor, SliceSettings, slice_type
from slicefine_pl.slicing.distributed.shards import full_tensors, reshard
from slicefine_pl.slicing.layers.base import NoGradReason, SlicedLayer, close_layer, open_layer
from slicefine_pl.slicing.layers.registry import Backend, SliceableMatrix
from slicefine_pl.slicing.schedule import AxisSchedule, Order, check_choice
from slicefine_pl.slicing.slice import duplicated_numel
from slicefine_pl.slicing.summary import SliceCounts, SliceSummary, summarize
from slicefine_pl.slicing.targets import TargetSelection, TargetSettings, find_targets
from slicefine_pl.slicing.view import MoveListener, SliceView


class SliceHandle:
    """The open slices of a network; made by :func:`slice_model`.

    Iterating yields every :class:`SliceView`, in the order of ``net.named_modules()``.

    Attributes:
        skipped: Matrices that are not sliced, by name, and the reason.
        frozen: What of them is not trained at all, with its share of the network; prints as a notice.
        closed: Whether :meth:`close` was called.
    """

    def __init__(self, net: nn.Module, found: TargetSelection, settings: SliceSettings) -> None:
        self._whole = list(found.fully_trained)
        self.skipped = found.skipped
        self.frozen = found.frozen
        self.closed = False
        self._net = net
        self._listeners: list[MoveListener] = []
        self._required_grad = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
        net.requires_grad_(False)
        for parameter in found.fully_trained.values():
            parameter.requires_grad_(True)
        try:
            self._layers = _open(found.chosen)
            self._opened = {
                each.name: SliceCursor(each.name, self._layers[id(each.module)], each.layout, settings)
                for each in found.chosen
            }
        except BaseException:  # leave the network as it was
            close_slices(net)
            self._restore_requires_grad()
            raise

    @property
    def fully_trained(self) -> dict[str, nn.Parameter]:
        """Parameters trained whole, by name."""
        parameters = dict(self._net.named_parameters())  # anew: sharding puts others in their places
        return {name: parameters[name] for name in self._whole}

    @property
    def _cursors(self) -> dict[str, SliceCursor]:
        if self.closed:
            raise RuntimeError("The slices of this handle are closed; open new ones with slice_model().")
        return self._opened

    def __iter__(self) -> Iterator[SliceView]:
        return (self._view(name) for name in self._cursors)

    def __len__(self) -> int:
        return len(self._cursors)

    def _view(self, name: str) -> SliceView:
        cursor = self._cursors[name]
        slice_, stored = cursor.slice_, cursor.layer.slicefine_stored(cursor.slice_.layout.parameter)
        return SliceView(name, slice_.axis, slice_.index, slice_.trainable, slice_.shape, stored)

    def move(self, names: Iterable[str] | None = None) -> list[SliceView]:
        """Move slices on; what they learned stays in the weights, and their gradients are dropped.

        Args:
            names: Slices to move; ``None`` moves all.

        Returns:
            The slices at their new places.  Their parameters are the same objects, so that the optimizer still knows
            them; whoever wants fresh optimizer state clears it.
        """
        moved = list(self._cursors if names is None else names)
        self.write(moved)
        for listener in self._listeners:
            listener.before_move([self._view(name) for name in moved])
        for name in moved:
            self._cursors[name].move()
            self._cursors[name].slice_.trainable.grad = None
        slices = [self._view(name) for name in moved]
        for listener in self._listeners:
            listener.after_move(slices)
        return slices

    def add_move_listener(self, listener: MoveListener) -> None:
        """Tell somebody of every move from now on, on every process."""
        self._listeners.append(listener)

    def write(self, names: Iterable[str] | None = None) -> None:
        """Copy live values to their places in the stored weights: of the named slices, or of all."""
        cursors = list(self._cursors.values()) if names is None else [self._cursors[name] for name in names]
        reshard(self._net)
        for cursor, trainable in zip(
            cursors, full_tensors([cursor.slice_.trainable for cursor in cursors]), strict=True
        ):
            cursor.write(trainable)

    def write_manually(self) -> None:
        """Promise to call :meth:`write` after each optimizer step.

        Then the stored weights are right between steps, and whoever reads or averages them there may do so; without the
        promise each forward pass, ``state_dict`` and ``eval`` writes by itself.  A forward pass then writes only what
        changed since, as far as torch counts changes (it counts neither those of ``parameter.data`` nor a fused
        optimizer's), and a compiled one nothing: there, what changes slices between forward passes of one step (LBFGS,
        SAM) has to write as well, see :meth:`unsynced`.
        """
        for layer in self._layers.values():
            layer.slicefine_writes_manually = True

    def unsynced(self) -> list[str]:
        """Names of the slices that were changed after they were last written to their weights.

        What torch does not count (changes of ``parameter.data``, steps of fused optimizers) and changes of slices that
        FSDP2 has sharded are not seen.
        """
        changed = [(name, cursor) for name, cursor in self._cursors.items() if not cursor.slice_.in_sync]
        return [name for name, cursor in changed if not cursor.layer.slicefine_is_sharded()]

    def resync(self) -> None:
        """Bring slices and weights in step, where somebody has exchanged parameters, as weight averages do."""
        for name in self.unsynced():
            self._cursors[name].resync()

    @property
    def moves(self) -> int:
        """How often the slices have moved; the largest number, should they move apart."""
        return max(cursor.moves for cursor in self._cursors.values())

    def counts(self) -> SliceCounts:
        """Count what is, and was, trained."""
        slices = [cursor.slice_ for cursor in self._cursors.values()]
        return SliceCounts(
            in_slices=sum(len(slice_.index) * slice_.line_length for slice_ in slices),
            in_full=sum(parameter.numel() for parameter in self.fully_trained.values()),
            visited=sum(cursor.visited_entries() for cursor in self._cursors.values()),
            sliced=sum(math.prod(cursor.slice_.shape) for cursor in self._cursors.values()),
            total=sum(parameter.numel() for parameter in self._net.parameters()) - duplicated_numel(self._net),
        )

    def without_gradient(self, names: Iterable[str] | None = None) -> list[str]:
        """Names of the slices that hold no gradient: after a backward pass there should be none."""
        return [
            name
            for name in (self._cursors if names is None else names)
            if self._cursors[name].slice_.trainable.grad is None
        ]

    def no_grad_reasons(self, names: Iterable[str]) -> dict[str, NoGradReason]:
        """Those of the named slices whose layers have run in train mode without recording gradients, and why.

        Where a slice holds no gradient after a backward pass, this is the cause.
        """
        found = {name: self._cursors[name].layer.slicefine_no_grad_reason for name in names}
        return {name: why for name, why in found.items() if why is not None}

    def summary(self) -> SliceSummary:
        """How every matrix of the network is trained, or why it is not, and the counts: print it."""
        return summarize(self._cursors, self.skipped, self.fully_trained, self.counts())

    def close(self) -> None:
        """Fold the slices: every layer is of its original class again and holds what was learned.

        Also gives every parameter the ``requires_grad`` it had before.  Closing twice does nothing.
        """
        if self.closed:
            return
        self.closed = True
        for layer in self._layers.values():
            close_layer(layer)
        self._restore_requires_grad()

    def _restore_requires_grad(self) -> None:
        for name, parameter in self._net.named_parameters():
            parameter.requires_grad_(self._required_grad.get(name, parameter.requires_grad))

    def state_dict(self) -> dict[str, Any]:
        """Positions, visits and scores of all slices, as plain numbers, strings and tensors."""
        return {
            "shapes": {view.name: list(view.parameter.shape) for view in self},
            "fully_trained": sorted(self.fully_trained),
            "slices": {name: cursor.state_dict() for name, cursor in self._cursors.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all slices where saved ones stood.  The weights must have been restored before.

        Raises:
            ValueError: If the saved slices lie in other layers, in another order, or have other shapes, or if other
                parameters were trained whole; the network is not changed then.
        """
        here = {
            "shapes": {view.name: list(view.parameter.shape) for view in self},
            "fully_trained": sorted(self.fully_trained),
        }
        for what in ("shapes", "fully_trained"):
            saved, present = state[what], here[what]
            # As lists: the same layers in another order would hand each slice another's optimizer state.
            if list(saved) != list(present) or saved != present:
                raise ValueError(
                    f"The saved slices do not fit this network: {what} differ in {_difference(saved, present)}."
                    " Use the targets, also_train and rank of the run that was saved."
                )
        for name, cursor in self._cursors.items():
            cursor.load_state_dict(state["slices"][name])
        for listener in self._listeners:
            listener.after_move(list(self))


def slice_model(
    net: nn.Module,
    rank: int = 32,
    axis: AxisSchedule = "column",
    order: Order = "random",
    targets: NamePatterns | None = None,
    also_train: NamePatterns | None = None,
    seed: int = 0,
    slice_dtype: torch.dtype | str | None = None,
    backend: Backend = "auto",
) -> SliceHandle:
    r"""Freeze a network and open one trainable slice in each chosen layer, in place.

    Call it before the optimizer is built.  The defaults are ours: the paper's text does not give its own.  The live
    values reach the stored weight at the layer's next forward pass; ``handle.write()`` puts them there at once.

    Args:
        net: Any network; its layers are changed in place, and changed back by ``handle.close()``.
        rank: Rows or columns per slice (R).
        axis: ``"column"`` sweeps inputs, ``"row"`` sweeps outputs, ``"alternate"`` takes them by turns.
        order: ``"random"`` goes through a random permutation of the axis, ``"sweep"`` along it from a random line on,
            ``"importance"`` to the lines with the largest score since the last move.
        targets: Regular expressions searched in module names, e.g. ``r"layer\.\d+\.attention"``.  ``None`` takes every
            linear map, convolution and attention but output heads, tied weights, weights that are frozen already, and
            those narrower than ``rank``; embeddings and raw parameters are sliced where a pattern names them.  A raw
            parameter of three dimensions is a stack of matrices, such as experts ``(E, O, I)``: the same lines of each.
        also_train: Regular expressions searched in parameter names, for what is trained whole.  ``None`` takes the new
            output head of a transformers, timm, torchvision or pytorchvideo model; patterns replace it.
        seed: Chooses where slices start and how they are permuted; equal seeds give equal places on every process.
        slice_dtype: Of the live slices, e.g. ``torch.float32`` or ``"float32"`` beside a bfloat16 network, whose own
            precision would round small updates away.  ``None`` takes the weight's.
        backend: ``"compact"`` computes the gradient of the slice alone, where there is a layer that can; ``"mask"``
            computes the dense gradient of the weight and keeps the slice's part; ``"auto"`` is compact where possible.

    Returns:
        The handle that moves and closes the slices.

    Raises:
        ValueError: If a setting is out of range, or a pattern matches nothing or a layer that cannot be sliced.  The
            network is not changed then.
    """
    settings = SliceSettings(rank, axis, order, seed, slice_type(slice_dtype))
    check_choice("backend", backend, Backend)
    found = find_targets(net, TargetSettings(targets, also_train, backend, rank, settings.axes))
    if found.notice:
        warnings.warn(found.notice, stacklevel=2)
    return SliceHandle(net, found, settings)


def close_slices(net: nn.Module) -> None:
    """Fold whatever slices are open in ``net``: for copies (deepcopy, pickle, averages), which have no handle."""
    for module in net.modules():
        if isinstance(module, SlicedLayer):
            close_layer(module)


def _open(chosen: Iterable[SliceableMatrix]) -> dict[int, SlicedLayer]:
    """Open the layers of all chosen matrices, each once; by the id of the module."""
    chosen = list(chosen)
    modules = {id(candidate.module): candidate for candidate in chosen}
    return {
        key: open_layer(
            first.module, first.implementation, [each.layout for each in chosen if each.module is first.module]
        )
        for key, first in modules.items()
    }


def _difference(saved: Iterable[str], present: Iterable[str]) -> str:
    """Where two collections of names part, for a message."""
    only_saved, only_present = sorted(set(saved) - set(present)), sorted(set(present) - set(saved))
    if only_saved or only_present:
        return f"names (only saved: {only_saved[:3]}, only here: {only_present[:3]})"
    return "order or size"
