"""Apply slice files to a base model, take them out again, and switch between several."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from slicefine_pl.slicing.fingerprint import Fingerprint
from slicefine_pl.slicing.layers.base import SlicedLayer
from slicefine_pl.slicing.named_tensors import Tensors, stored_tensors
from slicefine_pl.slicing.saved_matrix import SavedMatrix
from slicefine_pl.slicing.slice_file import SliceFile


class AppliedSlices:
    """A slice file that was applied to a network; :func:`apply_slices` returns one.

    It keeps what the file replaced: the base's lines, and the base's whole matrices where the file contains directions.

    Attributes:
        file: The file.
    """

    def __init__(self, net: nn.Module, file: SliceFile) -> None:
        self.file = file
        self._net = net
        self._base = _parts(stored_tensors(net), file)
        put_in(net, file)
        self._trained = [Fingerprint.of(part) for _, part in _replaced(stored_tensors(net), file)]
        self._removed = False

    def remove(self) -> None:
        """Give the network the values back that it had before, bit for bit. Removing twice does nothing.

        Raises:
            RuntimeError: The network has changed since, so that this would lose what it learned, or slices are open.
        """
        if self._removed:
            return
        present = _replaced(self.file.check_shapes(self._net), self.file)
        for trained, (name, part) in zip(self._trained, present, strict=True):
            if not trained.fits(part):
                raise RuntimeError(
                    f"{name} has changed since the slice file was applied; removing the file would lose that change."
                )
        _write(self._net, self.file, *self._base)
        self._removed = True


def apply_slices(net: nn.Module, path: str | Path | SliceFile) -> AppliedSlices:
    """Make a base model equal to the trained one: bit for bit, or to rounding where slices lay along directions.

    Args:
        net: The base model.
        path: A slice file, from :meth:`SliceHandle.save`.

    Returns:
        An object whose ``remove()`` gives the base back, bit for bit.

    Raises:
        FileNotFoundError: The file does not exist.
        RuntimeError: Slices of the network are open.
        ValueError: The file is damaged, or the network is not its base. Nothing is changed in any case.
    """
    file = path if isinstance(path, SliceFile) else SliceFile.read(path)
    file.check_base(net)
    return AppliedSlices(net, file)


def take_out(net: Tensors, file: SliceFile) -> None:
    """Turn a trained model back into its base, bit for bit, with what the file contains of the base.

    A model that was trained along directions differs from the one that :func:`apply_slices` makes by rounding. Only the
    second one can be turned back.

    Parameters that were trained whole and that the base did not have, such as a new head, stay as they are.

    Raises:
        ValueError: The file does not contain what that needs, or is not in the network. Nothing is changed then.
    """
    if missing := [each.name for each in file.matrices if not each.has_base][:1]:
        raise ValueError(
            f"The file does not contain the base's values of {missing[0]}; use the base model, or save with base=."
        )
    tensors = file.check_shapes(net)
    parts = list[Tensor]()
    for each in file.matrices:
        part = each.taken_out(tensors[each.parameter], file.base[each.name])
        if part is None:
            raise ValueError(f"The network does not contain this file: {each.name} differs{_hint(each)}.")
        parts.append(part)
    for name, values in file.whole.items():
        if not torch.equal(tensors[name].cpu(), values.cpu()):
            raise ValueError(f"The network does not contain this file: {name} differs.")
    _write(net, file, parts, file.whole_base)


def put_in(net: Tensors, file: SliceFile) -> None:
    """Put what was trained into the base, without a way back; check the base first."""
    _refuse_open_slices(net)
    tensors = stored_tensors(net)
    for each in file.matrices:
        stored = tensors[each.parameter]
        each.write(stored, each.trained(stored))
    _write_whole(tensors, file.whole)


Parts = tuple[list[Tensor], dict[str, Tensor]]  # of each matrix, and of what is stored whole


def _hint(matrix: SavedMatrix) -> str:
    if not matrix.replaces_all:
        return ""
    return " (a model that was trained along directions differs by rounding from the one that apply_slices makes)"


def _parts(tensors: Mapping[str, Tensor], file: SliceFile) -> Parts:
    """Copies of what a file replaces."""
    parts = [each.read(tensors[each.parameter]) for each in file.matrices]
    return parts, {name: tensors[name].detach().clone() for name in file.whole}  # may have other shapes


def _replaced(tensors: Mapping[str, Tensor], file: SliceFile) -> Iterator[tuple[str, Tensor]]:
    """Names and values of what a file replaces."""
    yield from ((each.name, each.read(tensors[each.parameter])) for each in file.matrices)
    yield from ((name, tensors[name]) for name in file.whole)


def _write(net: Tensors, file: SliceFile, parts: Sequence[Tensor], whole: Mapping[str, Tensor]) -> None:
    _refuse_open_slices(net)
    tensors = stored_tensors(net)
    for each, part in zip(file.matrices, parts, strict=True):
        each.write(tensors[each.parameter], part)
    _write_whole(tensors, whole)


def _write_whole(tensors: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> None:
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
    """Several tasks on one base: each is a slice file, and switching exchanges lines, or whole matrices.

    Nothing is added to the network, and nothing is computed when it runs. Heads may have different shapes. Where files
    contain directions, the base's matrices are kept as well, once for all tasks; a switch computes the trained ones.

    Args:
        net: The base model.
        files: Slice files by name of the task.

    Attributes:
        current: Name of the present task; ``None`` for the base.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: There are no files, or one is damaged or belongs to another base.
    """

    def __init__(self, net: nn.Module, files: Mapping[str, str | Path | SliceFile]) -> None:
        if not files:
            raise ValueError("files={} names no task; give slice files by name, such as {'reviews': 'a.safetensors'}.")
        self._net = net
        self.current: str | None = None
        device = next(net.parameters()).device  # switching then copies within one device
        self._tasks: dict[str, tuple[SliceFile, Parts]] = {}  # and what the base has instead
        tensors, matrices = stored_tensors(net), dict[str, Tensor]()
        for name, given in files.items():
            file = given if isinstance(given, SliceFile) else SliceFile.read(given)
            try:
                file.check_base(net)
            except ValueError as error:
                raise ValueError(f"Task {name!r}: {error}") from None
            parts, whole = _parts(tensors, file)
            for number, each in enumerate(file.matrices):
                if each.replaces_all:
                    parts[number] = matrices.setdefault(each.name, parts[number])
            self._tasks[name] = file.to(device), (parts, whole)
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
            file, base = self._tasks[self.current]
            _write(self._net, file, *base)
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
