"""Apply slice files to a base model, take them out again, and switch between several."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from slicefine_pl.slicing.layers.base import SlicedLayer
from slicefine_pl.slicing.slice_file import SavedLines, SliceFile, Tensors, stored_tensors


class AppliedSlices:
    """A slice file that was applied to a network; :func:`apply_slices` returns one.

    Attributes:
        file: The file.
    """

    def __init__(self, net: nn.Module, file: SliceFile) -> None:
        self.file = file
        self._net = net
        tensors = stored_tensors(net)
        self._lines = [each.read(tensors[each.parameter]) for each in file.lines]
        self._whole = {name: tensors[name].detach().clone() for name in file.whole}  # may have other shapes
        self._removed = False
        put_in(net, file)

    def remove(self) -> None:
        """Give the network the values back that it had before, bit for bit. Removing twice does nothing.

        Raises:
            RuntimeError: The network has changed since, so that this would lose what it learned, or slices are open.
        """
        if self._removed:
            return
        if changed := changed_lines(self._net, self.file):
            raise RuntimeError(
                f"{changed} has changed since the slice file was applied; removing the file would lose that change."
            )
        _write(self._net, self.file.lines, self._lines, self._whole)
        self._removed = True


def apply_slices(net: nn.Module, path: str | Path | SliceFile) -> AppliedSlices:
    """Make a base model equal to the trained one, bit for bit.

    Args:
        net: The base model.
        path: A slice file, from :meth:`SliceHandle.save`.

    Returns:
        An object whose ``remove()`` gives the base back.

    Raises:
        FileNotFoundError: The file does not exist.
        RuntimeError: Slices of the network are open.
        ValueError: The file is damaged, or the network is not its base. Nothing is changed in any case.
    """
    file = path if isinstance(path, SliceFile) else SliceFile.read(path)
    file.check_base(net)
    return AppliedSlices(net, file)


def changed_lines(net: Tensors, file: SliceFile) -> str | None:
    """Name of the first tensor that differs from what the file contains; ``None`` if the file is in the network.

    Raises:
        ValueError: The network lacks a matrix of the file.
    """
    tensors = file.check_shapes(net)
    for each in file.lines:
        if not torch.equal(each.read(tensors[each.parameter]).cpu(), each.values.cpu()):
            return each.name
    return next(
        (name for name, values in file.whole.items() if not torch.equal(tensors[name].cpu(), values.cpu())), None
    )


def take_out(net: Tensors, file: SliceFile) -> None:
    """Turn a trained model back into its base, with the base's values in the file.

    Parameters that were trained whole and that the base did not have, such as a new head, stay as they are.

    Raises:
        ValueError: The file does not contain them, or is not in the network. Nothing is changed then.
    """
    if missing := [each.name for each in file.lines if each.base is None][:1]:
        raise ValueError(
            f"The file does not contain the base's values of {missing[0]}; use the base model, or save with base=."
        )
    if changed := changed_lines(net, file):
        raise ValueError(f"The network does not contain this file: {changed} differs.")
    _write(net, file.lines, [each.base for each in file.lines if each.base is not None], file.whole_base)


def put_in(net: Tensors, file: SliceFile) -> None:
    """Replace the base's values by those of a file, without a way back; check the base first."""
    _write(net, file.lines, [each.values for each in file.lines], file.whole)


def _write(net: Tensors, lines: Sequence[SavedLines], values: Sequence[Tensor], whole: Mapping[str, Tensor]) -> None:
    _refuse_open_slices(net)
    tensors = stored_tensors(net)
    for each, own in zip(lines, values, strict=True):
        each.write(tensors[each.parameter], own)
    for name, own in whole.items():
        stored = tensors[name]
        if stored.shape == own.shape:
            stored.data.copy_(own)
        else:  # the head of a task with another number of classes
            stored.data = own.to(stored.device, copy=True)


def _refuse_open_slices(net: Tensors) -> None:
    if isinstance(net, nn.Module) and any(isinstance(module, SlicedLayer) for module in net.modules()):
        raise RuntimeError("Slices of the network are open, and would overwrite the file's lines; close them first.")


class SliceTasks:
    """Several tasks on one base: each is a slice file, and switching exchanges lines.

    Nothing is added to the network, and nothing is computed when it runs. Heads may have different shapes.

    Args:
        net: The base model.
        files: Slice files by name of the task.

    Attributes:
        current: Name of the present task; ``None`` for the base.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is damaged, or belongs to another base.
    """

    def __init__(self, net: nn.Module, files: Mapping[str, str | Path | SliceFile]) -> None:
        self._net = net
        self.current: str | None = None
        device = next(net.parameters()).device  # switching then copies within one device
        self._tasks: dict[str, tuple[SliceFile, SliceFile]] = {}  # the trained values, and those of the base
        tensors = stored_tensors(net)
        for name, given in files.items():
            file = given if isinstance(given, SliceFile) else SliceFile.read(given)
            try:
                file.check_base(net)
            except ValueError as error:
                raise ValueError(f"Task {name!r}: {error}") from None
            file = file.to(device)
            lines = [replace(each, values=each.read(tensors[each.parameter])) for each in file.lines]
            whole = {name: tensors[name].detach().clone() for name in file.whole}
            self._tasks[name] = file, replace(file, lines=lines, whole=whole)
        self._versions = self._present_versions()

    @property
    def names(self) -> list[str]:
        """The tasks."""
        return list(self._tasks)

    def use(self, task: str | None) -> None:
        """Switch to a task; ``None`` gives the base back.

        Raises:
            ValueError: There is no such task.
            RuntimeError: A parameter has changed since the last switch, or slices are open. Changes of
                ``parameter.data`` are not noticed.
        """
        if task is not None and task not in self._tasks:
            raise ValueError(f"task={task!r} is unknown; choose one of {', '.join(map(repr, self._tasks))}, or None.")
        _refuse_open_slices(self._net)
        if (present := self._present_versions()) != self._versions:
            changed = next(name for name, version in present.items() if version != self._versions.get(name))
            raise RuntimeError(f"{changed} has changed since the last switch; switching would lose that change.")
        if self.current is not None:
            put_in(self._net, self._tasks[self.current][1])
        if task is not None:
            put_in(self._net, self._tasks[task][0])
        self.current = task
        self._versions = self._present_versions()

    def _present_versions(self) -> dict[str, tuple[int, torch.dtype]]:
        """Torch's version counters of the parameters, which every change in place increases, and their types."""
        present = self._net.named_parameters()
        return {name: (tensor._version, tensor.dtype) for name, tensor in present if not tensor.is_inference()}

    @contextmanager
    def using(self, task: str | None) -> Iterator[nn.Module]:
        """Within the context, the network does a task; afterwards the one before."""
        before = self.current
        self.use(task)
        try:
            yield self._net
        finally:
            self.use(before)
