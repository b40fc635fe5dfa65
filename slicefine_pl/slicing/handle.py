"""The open slices of a network: move, write, save and close them."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from slicefine_pl.slicing.cursor import SliceCursor, SliceSettings
from slicefine_pl.slicing.direction_cursor import DirectionCursor
from slicefine_pl.slicing.direction_slice import DirectionSlice
from slicefine_pl.slicing.distributed.shards import reshard
from slicefine_pl.slicing.layers.base import NoGradReason
from slicefine_pl.slicing.layers.opening import close_layer, close_slices, open_layers
from slicefine_pl.slicing.saved_lines import SavedLines
from slicefine_pl.slicing.slice import duplicated_numel, gather_lines
from slicefine_pl.slicing.slice_file import SliceFile
from slicefine_pl.slicing.summary import SliceCounts, SliceSummary, summarize
from slicefine_pl.slicing.targets import TargetSelection
from slicefine_pl.slicing.training_record import TrainingRecord
from slicefine_pl.slicing.view import MoveListener, SliceView


class SliceHandle:
    """The open slices of a network, as :func:`slice_model` returns them.

    Iterating over the handle yields a :class:`SliceView` of every slice, in the order of ``net.named_modules()``.

    Attributes:
        skipped: Matrices that are not sliced, by name, and the reason for each.
        frozen: A report of what is not trained at all, with its share of the parameters.
        closed: Whether :meth:`close` was called.
    """

    def __init__(self, net: nn.Module, selection: TargetSelection, settings: SliceSettings) -> None:
        self.skipped = selection.skipped
        self.frozen = selection.frozen
        self.closed = False
        self._net = net
        self._settings = settings
        self._fully_trained = list(selection.fully_trained)
        self._listeners: list[MoveListener] = []
        self._required_grad = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
        self._record = TrainingRecord(net, selection.chosen, self._fully_trained, settings.as_dict())
        net.requires_grad_(False)
        for parameter in selection.fully_trained.values():
            parameter.requires_grad_(True)
        try:
            self._layers = open_layers(selection.chosen)
            cursor = SliceCursor if settings.basis == "standard" else DirectionCursor
            self._opened = {
                each.name: cursor(each.name, self._layers[id(each.module)], each.layout, settings)
                for each in selection.chosen
            }
        except BaseException:  # leave the network as it was
            close_slices(net)
            self._restore_requires_grad()
            raise

    @property
    def network(self) -> nn.Module:
        """The network whose slices these are."""
        return self._net

    @property
    def fully_trained(self) -> dict[str, nn.Parameter]:
        """Parameters that are trained in full, such as a new output head, by name."""
        parameters = dict(self._net.named_parameters())  # looked up each time: sharding replaces parameters
        return {name: parameters[name] for name in self._fully_trained}

    @property
    def _cursors(self) -> dict[str, SliceCursor]:
        if self.closed:
            raise RuntimeError("The slices of this handle are closed; open new ones with slice_model().")
        return self._opened

    def _chosen(self, names: Iterable[str] | None) -> list[str]:
        return list(self._cursors if names is None else names)

    def __iter__(self) -> Iterator[SliceView]:
        return (self._view(name) for name in self._cursors)

    def __len__(self) -> int:
        return len(self._cursors)

    def _view(self, name: str) -> SliceView:
        slice_, layer = self._cursors[name].slice_, self._cursors[name].layer
        return SliceView(
            name=name,
            axis=slice_.axis,
            indices=slice_.index,
            parameter=slice_.trainable,
            base=slice_.base,
            scale=slice_.scale,
            directions=slice_.directions if isinstance(slice_, DirectionSlice) else None,
            shape=slice_.shape,
            stored=layer.slicefine_stored(slice_.layout.parameter),
            layout=slice_.layout,
        )

    def move(self, names: Iterable[str] | None = None) -> list[SliceView]:
        """Move slices to their next positions.

        The trained values stay in the weights. Gradients of the slices are dropped.

        Args:
            names: Names of the slices to move; ``None`` moves all.

        Returns:
            The slices at their new positions. Their parameters are the same objects as before, so the optimizer still
            holds them, with the state of the old position. Clear that state for a fresh start.
        """
        moved = self._chosen(names)
        self.write(moved)
        self.merge(moved)
        for listener in self._listeners:
            listener.before_move([self._view(name) for name in moved])
        for name in moved:
            self._cursors[name].move()
            self._cursors[name].slice_.stays = False
            self._cursors[name].slice_.trainable.grad = None
        slices = [self._view(name) for name in moved]
        for listener in self._listeners:
            listener.after_move(slices)
        return slices

    def stay(self, names: Iterable[str] | None = None) -> None:
        """Expect that slices do not move again: backward passes stop adding up what chooses the next position.

        That saves time and memory with ``order="importance"``, ``basis="gradient"`` and ``basis="pca"``. Compiled code
        goes on adding, because it would be compiled again otherwise. A later move takes random lines or directions,
        unless backward passes have added up something before this call, and they add up again after it.

        Args:
            names: Names of the slices that stay; ``None`` takes all.
        """
        for name in self._chosen(names):
            self._cursors[name].slice_.stays = True

    def add_move_listener(self, listener: MoveListener) -> None:
        """Call ``listener`` before and after every move from now on, in every process."""
        self._listeners.append(listener)

    def write(self, names: Iterable[str] | None = None) -> None:
        """Copy the trained values to their positions in the stored weights.

        Call it before reading a sliced weight. With ``torch.compile`` or weight averaging, call it after every
        optimizer step; ``SliceFineCallback`` does this for you.

        Args:
            names: Names of the slices to write; ``None`` writes all.
        """
        cursors = [self._cursors[name] for name in self._chosen(names)]
        for cursor, lines in self._gathered(cursor for cursor in cursors if not cursor.slice_.adds_to_output):
            cursor.write(lines)
        for cursor in cursors:
            if cursor.slice_.adds_to_output:
                cursor.count_visit()

    def merge(self, names: Iterable[str] | None = None) -> None:
        """Add to the stored weights what layers add to their output until a move.

        Slices along directions of a bfloat16 or float16 weight do, because the weight would round small steps away.
        Moves and :meth:`close` merge; under FSDP2, call this before :meth:`close`, in every process.

        Args:
            names: Names of the slices to merge; ``None`` merges all.
        """
        cursors = [self._cursors[name] for name in self._chosen(names)]
        for cursor, lines in self._gathered(cursor for cursor in cursors if cursor.slice_.adds_to_output):
            cursor.merge(lines)

    def _gathered(self, cursors: Iterable[SliceCursor]) -> Iterator[tuple[SliceCursor, Tensor]]:
        """Slices with their whole lines; one collective for all of a type where weights are sharded."""
        chosen = list(cursors)
        reshard(self._net)
        return zip(chosen, gather_lines([cursor.slice_ for cursor in chosen]), strict=True)

    def save(
        self,
        path: str | Path,
        base_model: str = "",
        root: str | None = "",
        base: nn.Module | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> SliceFile:
        """Write what was trained to a slice file; also after :meth:`close`, as long as the network stays as it is.

        The file contains the trained lines, and the parameters that were trained whole. :func:`apply_slices` makes the
        base model equal to the trained one, bit for bit. For slices along directions, the file contains the change of
        each matrix as two thin factors, and the base becomes equal up to rounding; or all rows of the matrix, where
        these are fewer numbers. Where FSDP2 shards weights, every process calls this.

        Args:
            path: File to write, usually ``*.safetensors``.
            base_model: Name of the base model, for the reader of the file.
            root: Name of the module inside the network to which names in the file refer, such as ``"model"``. ``None``
                takes the only child that has parameters, if there is only one.
            base: The base model itself. With it the file also contains the base's lines, so that the trained model can
                be turned back into the base without it. For directions these are the entries that subtracting the
                change does not give back, and the model that can be turned back is the one that ``apply_slices`` makes.
            extra: Values for the code that builds the network, such as the names of the classes, as JSON stores them.

        Raises:
            OSError: The file cannot be written.
            ValueError: Weights outside of the slices have changed, for example by pruning; or a value is not finite.
                Nothing is written then.
        """
        if not self.closed:
            self.write()
        if root is None:
            owners = [name for name, child in self._net.named_children() if any(True for _ in child.parameters())]
            root = owners[0] if len(owners) == 1 and not self._net._parameters else ""
        file = self._record.collect(self._opened, root, base_model, base, extra)
        if not dist.is_initialized() or dist.get_rank() == 0:
            file.write(path)
        return file

    def snapshot(self) -> SliceFile:
        """What was trained so far, for a checkpoint of these slices; the stored weights must be up to date.

        Where FSDP2 shards weights, every process calls this.

        Raises:
            ValueError: As for :meth:`save`, except that values may be infinite or NaN.
        """
        reshard(self._net)
        return self._record.collect(self._opened)

    def belongs_to(self, net: nn.Module) -> bool:
        """Whether the slices are, or were, open in this network."""
        return net is self._net

    def stored_lines(self, names: Iterable[str] | None = None) -> Iterator[SavedLines]:
        """The lines at which slices are, as the stored weights contain them, in CPU memory.

        Args:
            names: Names of the slices; ``None`` takes all. Where FSDP2 shards weights, every process calls this.
        """
        return self._record.present({name: self._cursors[name] for name in self._chosen(names)})

    def write_manually(self) -> None:
        """Promise to call :meth:`write` after each optimizer step.

        The stored weights are then correct between steps, for code that reads or averages them. Without the promise,
        every forward pass, ``state_dict`` and ``eval`` writes automatically.

        With it, an eager forward pass writes only slices that were changed since the last write. A compiled one never
        writes: optimizers that run several forward passes per step (LBFGS, SAM) must call :meth:`write` between them.
        See :meth:`unsynced` for what counts as a change.
        """
        for layer in self._layers.values():
            layer.slicefine_writes_manually = True

    def unsynced(self) -> list[str]:
        """Names of the slices that were changed since they were last written to their weights.

        Relies on torch's version counters. Changes of ``parameter.data``, steps of fused optimizers, and changes of
        slices that FSDP2 has sharded are not detected.
        """
        changed = [(name, cursor) for name, cursor in self._cursors.items() if not cursor.slice_.in_sync]
        return [name for name, cursor in changed if not cursor.layer.slicefine_is_sharded()]

    def resync(self) -> None:
        """Make slices and weights equal again, after other code replaced parameters, as weight averaging does."""
        for name in self.unsynced():
            self._cursors[name].resync()

    @property
    def moves(self) -> int:
        """How often the slices have moved; the maximum, if they move separately."""
        return max(cursor.moves for cursor in self._cursors.values())

    def counts(self) -> SliceCounts:
        """Count the trained parameters, now and so far."""
        slices = [cursor.slice_ for cursor in self._cursors.values()]
        return SliceCounts(
            in_slices=sum(len(slice_.index) * slice_.line_length for slice_ in slices),
            in_full=sum(parameter.numel() for parameter in self.fully_trained.values()),
            visited=sum(cursor.visited_numel() for cursor in self._cursors.values()),
            sliced=sum(math.prod(slice_.shape) for slice_ in slices),
            total=sum(parameter.numel() for parameter in self._net.parameters()) - duplicated_numel(self._net),
        )

    def without_gradient(self, names: Iterable[str] | None = None) -> list[str]:
        """Names of the slices whose gradient is ``None``. After a backward pass the list should be empty.

        Args:
            names: Names of the slices to check; ``None`` checks all.
        """
        return [name for name in self._chosen(names) if self._cursors[name].slice_.trainable.grad is None]

    def no_grad_reasons(self, names: Iterable[str]) -> dict[str, NoGradReason]:
        """Why slices have no gradient: those whose layers ran in train mode without recording gradients.

        Args:
            names: Names of the slices to check.
        """
        reasons = {name: self._cursors[name].layer.slicefine_no_grad_reason for name in names}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def summary(self) -> SliceSummary:
        """A table of how every matrix of the network is trained, or why it is not: ``print(handle.summary())``."""
        return summarize(self._cursors, self.skipped, self.fully_trained, self.counts())

    def close(self) -> None:
        """Close the slices: every layer gets its original class back, and keeps the trained values.

        Every parameter gets the ``requires_grad`` that it had before. Closing twice does nothing.
        """
        if self.closed:
            return
        if lost := [name for name, cursor in self._opened.items() if cursor.loses_change()]:
            warnings.warn(
                f"What {lost[0]} learned since the last move is lost: where FSDP2 shards weights, call handle.merge()"
                " before handle.close(), in every process.",
                stacklevel=2,
            )
        for layer in self._layers.values():
            close_layer(layer)
        self.closed = True
        self._restore_requires_grad()

    def _restore_requires_grad(self) -> None:
        for name, parameter in self._net.named_parameters():
            parameter.requires_grad_(self._required_grad.get(name, parameter.requires_grad))

    def _identity(self) -> dict[str, Any]:
        """What must be equal in a saved state: names and shapes of slices, what is trained in full, and the scaling."""
        kinds = {"lr_scale": [str(self._settings.lr_scale)], "basis": [self._settings.basis]}
        shapes = {view.name: list(view.parameter.shape) for view in self}
        return {"shapes": shapes, "fully_trained": sorted(self.fully_trained), **kinds}

    def state_dict(self) -> dict[str, Any]:
        """Positions, visits and scores of all slices, as plain numbers, strings and tensors."""
        slices = {name: each.state_dict() for name, each in self._cursors.items()}
        return {**self._identity(), "slices": slices, "base": self._record.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Move all slices to saved positions. The weights must have been restored before.

        Raises:
            ValueError: The saved slices have other names, another order, other shapes, or another ``lr_scale`` or
                ``basis``; other parameters were trained in full; an earlier version saved them; or, for slices along
                directions of half-precision weights, the weights were not restored. Nothing is changed then.
        """
        if missing := [what for what in (*self._identity(), "base") if state.get(what) is None]:
            raise ValueError(
                f"The saved slices lack {missing[0]!r}, because an earlier version of the package saved them. Start a"
                " new run from the saved weights."
            )
        for what, present in self._identity().items():
            saved = state[what]
            # The order counts: otherwise each slice would get the optimizer state of another one.
            if list(saved) != list(present) or saved != present:
                raise ValueError(
                    f"The saved slices do not fit this network: {what} differ in {_difference(saved, present)}."
                    " Use the targets, also_train, rank, lr_scale and basis of the run that was saved."
                )
        for name, cursor in self._cursors.items():
            cursor.check_state(state["slices"][name])
        for name, cursor in self._cursors.items():
            cursor.load_state_dict(state["slices"][name])
        self._record.load_state_dict(state["base"])
        for listener in self._listeners:
            listener.after_move(list(self))


def _difference(saved: Iterable[str], present: Iterable[str]) -> str:
    """How two collections of names differ, for a message."""
    only_saved, only_present = sorted(set(saved) - set(present)), sorted(set(present) - set(saved))
    if only_saved or only_present:
        return f"names (only saved: {only_saved[:3]}, only here: {only_present[:3]})"
    return "order or size"
