"""What a run trained, and what the base was: enough to write a slice file, also after the slices were closed."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from slicefine_pl.slicing.cursor import SliceCursor
from slicefine_pl.slicing.direction_cursor import DirectionCursor
from slicefine_pl.slicing.distributed.shards import LocalShard, full_tensor
from slicefine_pl.slicing.fingerprint import Fingerprint, persistent_tensors
from slicefine_pl.slicing.layers.base import SlicedLayer
from slicefine_pl.slicing.layers.registry import SliceableMatrix
from slicefine_pl.slicing.layout import MatrixLayout, lines_along
from slicefine_pl.slicing.named_tensors import name_of_rows, named_part, plain_name, stored_tensors, tensor_name
from slicefine_pl.slicing.saved_directions import SavedDirections
from slicefine_pl.slicing.saved_lines import SavedLines
from slicefine_pl.slicing.schedule import Axis
from slicefine_pl.slicing.slice_file import SliceFile
from slicefine_pl.version import __version__


class TrainingRecord:
    """What a run trained.

    Args:
        net: The network, before its slices are opened.
        chosen: The matrices that will be sliced.
        whole: Names of the parameters that will be trained whole.
        settings: The settings of the slices, for the file.
    """

    def __init__(
        self, net: nn.Module, chosen: Iterable[SliceableMatrix], whole: Iterable[str], settings: Mapping[str, Any]
    ) -> None:
        self._net = net
        self._whole = dict.fromkeys(map(plain_name, whole))  # in one order, in which all processes collect them
        self._settings = dict(settings)
        names = {id(module): name for name, module in net.named_modules()}
        self._matrices = {
            each.name: (plain_name(_joined(names[id(each.module)], each.layout)), each.layout) for each in chosen
        }
        sliced = {parameter for parameter, _ in self._matrices.values()}
        self._base = {
            name: Fingerprint.of(tensor)
            for name, tensor in ((plain_name(name), tensor) for name, tensor in persistent_tensors(net))
            if name not in self._whole and name not in sliced and not tensor.is_meta
        }
        with_values = {name: tensor for name, tensor in stored_tensors(net).items() if not tensor.is_meta}
        for name in _unsliced_rows(self._matrices.values(), with_values):
            self._base[name] = Fingerprint.of(named_part(with_values, name))

    def state_dict(self) -> dict[str, Any]:
        """The fingerprints of the base, which a resumed run cannot take anew."""
        return {name: dataclasses.astuple(each) for name, each in self._base.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the base of a saved run."""
        self._base = {name: Fingerprint(*values) for name, values in state.items()}

    @torch.no_grad()
    def present(self, cursors: Mapping[str, SliceCursor]) -> Iterator[SavedLines]:
        """The lines at which slices are, as the weights contain them. A collective where weights are sharded.

        Args:
            cursors: The slices, by name.
        """
        tensors = stored_tensors(self._net)
        for name, cursor in cursors.items():
            parameter, layout = self._matrices[name]
            slice_, index = cursor.slice_, cursor.slice_.index.cpu().sort().values
            yield _lines(parameter, layout, tensors[parameter], slice_.shape, slice_.axis, index)

    def collect(
        self,
        cursors: Mapping[str, SliceCursor],
        root: str = "",
        base_model: str = "",
        base: nn.Module | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> SliceFile:
        """Collect what was trained from the network. Where weights are sharded, every process calls this.

        Args:
            cursors: The slices, by name; open and written, or closed.
            root: Name of the module inside the network to which the names in the file refer.
            base_model: Name of the base model.
            base: The base model itself, of which the file then contains what turns the trained model back.
            extra: Plain values for the code that builds the network.

        Raises:
            ValueError: Something else than the slices changed, or lies outside of ``root``; or ``base`` is another one.
        """
        prefix = f"{root}." if root else ""
        tensors = stored_tensors(self._net)
        lines, directions = list[SavedLines](), list[SavedDirections]()
        prints, whole = dict[str, Fingerprint](), dict[str, Tensor]()
        for name, cursor in cursors.items():
            stored, layout = self._matrices[name]
            parameter = _relative(stored, prefix)
            if cursor.base is None:
                raise ValueError(f"The slices of {parameter} were opened before the network had weights.")
            prints[name_of_rows(parameter, _rows(layout))] = cursor.base
            if not isinstance(cursor, DirectionCursor):
                lines += _trained_lines(cursor, parameter, layout, tensors[stored])
            elif cursor.visited_directions.dropped:
                lines.append(_whole_matrix(cursor, parameter, layout, tensors[stored]))
            else:
                directions.append(_trained_directions(cursor, parameter, layout, tensors[stored]))
        for name in (*self._whole, *self._changed_buffers(tensors, prefix)):
            whole[_relative(name, prefix)] = _full(tensors[name])
        frozen = {name.removeprefix(prefix): each for name, each in self._base.items() if name.startswith(prefix)}
        prints |= {name: each for name, each in frozen.items() if name not in whole}
        settings, more, tied = self._settings, dict(extra or {}), _tied(tensors, prefix)
        file = SliceFile(lines, whole, prints, base_model, settings, {}, more, __version__, tied, directions)
        return file if base is None else _with_base(file, stored_tensors(base))

    def _changed_buffers(self, tensors: Mapping[str, Tensor], prefix: str) -> Iterator[str]:
        """Names of the buffers that training changed; nothing else that is frozen may have changed.

        Raises:
            ValueError: It has.
        """
        buffers = {plain_name(name) for name, _ in self._net.named_buffers()}
        for name, before in self._base.items():
            if not name.startswith(prefix) or before.fits(_whole_part(tensors, name)):
                continue
            if name not in buffers:
                raise ValueError(f"{name} is frozen, and has changed. {NO_FILE}")
            yield name


def _tied(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """For each further name of a tensor, its first name; names without the prefix."""
    first, tied = dict[int, str](), dict[str, str]()
    for name, tensor in tensors.items():
        if name.startswith(prefix) and first.setdefault(id(tensor), name) != name:
            tied[name.removeprefix(prefix)] = first[id(tensor)].removeprefix(prefix)
    return tied


def _with_base(file: SliceFile, base: Mapping[str, Tensor]) -> SliceFile:
    """The file with what turns its matrices back as well, and with what the base has of those trained whole."""
    file.check_values(base)
    lines = [each.with_base(base[each.parameter]) for each in file.lines]
    directions = [each.with_base(base[each.parameter]) for each in file.directions]
    whole = {name: _full(base[name]) for name in file.whole if name in base}
    return dataclasses.replace(file, lines=lines, directions=directions, whole_base=whole)


NO_FILE = "A slice file contains what slices train, and cannot reproduce this network; save the whole model."


@torch.no_grad()
def _trained_lines(cursor: SliceCursor, parameter: str, layout: MatrixLayout, stored: Tensor) -> Iterator[SavedLines]:
    """The lines of one matrix that a slice has trained.

    Raises:
        ValueError: Something else has changed the matrix.
    """
    assert cursor.untouched is not None
    trained = cursor.untouched.trained(layout.view(full_tensor(stored)))
    if trained is None:
        raise ValueError(f"{parameter} has changed outside of its slices. {NO_FILE}")
    for axis, chosen in trained.items():
        index = chosen.nonzero().flatten()
        if len(index):
            yield _lines(parameter, layout, stored, cursor.slice_.shape, axis, index)


@torch.no_grad()
def _trained_directions(
    cursor: DirectionCursor, parameter: str, layout: MatrixLayout, stored: Tensor
) -> SavedDirections:
    """The change of one matrix along the directions at which a slice has been.

    Raises:
        ValueError: Something else has changed the matrix.
    """
    found = cursor.visited_directions.changed(_merged(cursor, layout, stored))
    if found is None:
        raise ValueError(f"{parameter} has changed outside of its slices. {NO_FILE}")
    return SavedDirections(**_place(parameter, layout, stored), directions=found.directions, change=found.change)


@torch.no_grad()
def _whole_matrix(cursor: DirectionCursor, parameter: str, layout: MatrixLayout, stored: Tensor) -> SavedLines:
    """All rows of a matrix; they are fewer numbers than the directions at which its slice has been."""
    matrix = _merged(cursor, layout, stored).detach().cpu().clone(memory_format=torch.contiguous_format)
    return SavedLines(**_place(parameter, layout, stored), axis="row", index=torch.arange(len(matrix)), values=matrix)


def _merged(cursor: DirectionCursor, layout: MatrixLayout, stored: Tensor) -> Tensor:
    """The whole matrix ``(O, I, ...)``, with what its layer adds to the output."""
    if isinstance(cursor.layer, SlicedLayer):
        stored = cursor.layer.slicefine_merged(layout.parameter)
    return layout.view(full_tensor(stored))


def _lines(
    parameter: str, layout: MatrixLayout, stored: Tensor, shape: tuple[int, ...], axis: Axis, index: Tensor
) -> SavedLines:
    lines = LocalShard.of(layout, stored).gather(axis, index, shape)
    values = lines_along(lines, axis).cpu().contiguous()
    return SavedLines(**_place(parameter, layout, stored), axis=axis, index=index, values=values)


def _place(parameter: str, layout: MatrixLayout, stored: Tensor) -> dict[str, Any]:
    """Where a matrix lies; the arguments of :class:`SavedMatrix`."""
    return {"parameter": parameter, "rows": _rows(layout), "order": tuple(layout.order(stored.dim()))}


def _rows(layout: MatrixLayout) -> tuple[int, int] | None:
    return None if layout.num_rows is None else (layout.first_row, layout.num_rows)


def _unsliced_rows(matrices: Iterable[tuple[str, MatrixLayout]], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Rows of fused parameters that belong to no sliced matrix, as ``parameter[first:stop]``."""
    fused: dict[str, list[tuple[int, int]]] = {}
    for parameter, layout in matrices:
        if layout.num_rows is not None and parameter in tensors:
            fused.setdefault(parameter, []).append((layout.first_row, layout.first_row + layout.num_rows))
    for parameter, parts in fused.items():
        stops = [0, *(stop for _, stop in sorted(parts))]
        starts = [*(first for first, _ in sorted(parts)), len(tensors[parameter])]
        yield from (f"{parameter}[{stop}:{start}]" for stop, start in zip(stops, starts, strict=True) if stop < start)


def _whole_part(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    whole = tensor_name(name)
    return named_part({whole: full_tensor(tensors[whole])}, name)


def _full(stored: Tensor) -> Tensor:
    return full_tensor(stored).cpu().clone()


def _relative(name: str, prefix: str) -> str:
    if not name.startswith(prefix):
        raise ValueError(f"{name} was trained, and lies outside of {prefix.removesuffix('.')!r}.")
    return name.removeprefix(prefix)


def _joined(module: str, layout: MatrixLayout) -> str:
    return f"{module}.{layout.parameter}" if module else layout.parameter
