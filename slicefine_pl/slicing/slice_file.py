"""What was trained, as a file: the visited lines of each matrix, and the parameters that were trained whole.

A slice file is a safetensors file. The entry ``slicefine`` of its metadata is JSON, ``{"sha256", "content"}``: one
entry, because safetensors stores several in any order. The hash is that of the content and of all tensors. The content:

- ``format_version``: 1; ``package_version``: of the package that wrote it; ``base_model``: name, may be empty
- ``settings``: rank, axis and the other settings of the slices; ``extra``: values for the code that builds the network
- ``lines``: for each set of lines ``parameter``, ``axis``, ``rows``, ``order``, and the names of its tensors:
  ``index``, ``values`` and perhaps ``base``
- ``whole``: names of the parameters and buffers that are stored whole, under these names; ``whole_base``: those of
  which the base's values are stored as well, under the name followed by ``.base``
- ``base``: fingerprints of the base's tensors, ``[type, shape, bits, norm]`` by name; ``tied``: the first name of each
  parameter that has several, by the others

A matrix (O, I, ...) is the parameter, narrowed to ``rows`` = [first, count] if that is not null, with its dimensions
permuted to ``order``. Columns are stored as (O, n, ...), rows as (n, I, ...), with their indices (n,) beside them.

Shapes:  O outputs · I inputs · n lines
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from slicefine_pl.files.atomic import write_atomic
from slicefine_pl.slicing.fingerprint import Fingerprint
from slicefine_pl.slicing.schedule import Axis

Tensors = nn.Module | Mapping[str, Tensor]
KEY, VERSION = "slicefine", 1
ROWS = re.compile(r"\[(\d+):(\d+)\]$")  # after the name of a parameter, the rows that are meant
AXES = {"column": 1, "row": 0}  # dimension along which lines are stored


@dataclass(frozen=True)
class SavedLines:
    """Columns or rows of one matrix.

    Attributes:
        parameter: Name of the parameter that stores the matrix.
        axis: Columns or rows.
        rows: First row and number of rows of the matrix in the parameter; ``None`` if it is all of them.
        order: For each dimension of the matrix ``(O, I, ...)``, the dimension of the parameter that it is.
        index: Which lines, ascending, shape ``(n,)``, int64.
        values: Their values, shape ``(O, n, ...)`` or ``(n, I, ...)``, in the type of the parameter.
        base: The values in the base, if they were saved; without them the lines cannot be taken back out of a network
            whose base is not at hand.
    """

    parameter: str
    axis: Axis
    rows: tuple[int, int] | None
    order: tuple[int, ...]
    index: Tensor
    values: Tensor
    base: Tensor | None = None

    @property
    def name(self) -> str:
        """Name of the matrix, unique together with ``axis``."""
        return self.parameter if self.rows is None else f"{self.parameter}[{self.rows[0]}:{sum(self.rows)}]"

    def matrix(self, stored: Tensor) -> Tensor:
        """The matrix as a view of the parameter, shape ``(O, I, ...)``."""
        return (stored if self.rows is None else stored.narrow(0, *self.rows)).permute(self.order)

    def read(self, stored: Tensor) -> Tensor:
        """A copy of the lines in a parameter, in the shape of ``values``."""
        return self.matrix(stored.detach()).index_select(AXES[self.axis], self.index.to(stored.device))

    @torch.no_grad()
    def write(self, stored: Tensor, values: Tensor) -> None:
        """Replace the lines of a parameter."""
        index = self.index.to(stored.device)
        self.matrix(stored.data).index_copy_(AXES[self.axis], index, values.to(stored.device))


@dataclass(frozen=True)
class SliceFile:
    """The content of a slice file.

    Attributes:
        lines: The trained lines, by matrix.
        whole: Parameters that were trained whole, and buffers that training changed, by name.
        whole_base: Their values in the base, where these were saved.
        base: Fingerprints of the base: of each matrix that has lines, by :attr:`SavedLines.name`, and of everything
            else, by the name of the tensor, or ``name[first:stop]`` for rows of one.
        base_model: Name of the base model; may be empty.
        settings: The settings of the slices.
        extra: Plain values for the code that builds the network, such as the names of the classes.
        package_version: Version of the package that wrote the file.
        tied: For each further name of a parameter that has several, the first, under which it is stored.
    """

    lines: list[SavedLines]
    whole: dict[str, Tensor]
    base: dict[str, Fingerprint]
    base_model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    whole_base: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    package_version: str = ""
    tied: dict[str, str] = field(default_factory=dict)

    def write(self, path: str | Path) -> Path:
        """Write the file: a process that is killed meanwhile leaves the old file or none.

        Raises:
            OSError: The file cannot be written.
            ValueError: A value is not finite.
        """
        for name, values in self._tensors():
            if values.is_floating_point() and not values.isfinite().all():
                raise ValueError(f"{name} has values that are not finite; {str(path)!r} was not written.")
        content, tensors = self.pack()
        entry = json.dumps({"sha256": _checksum(content, tensors), "content": content})
        return write_atomic(path, save(tensors, {KEY: entry}))

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The content as plain values, and the tensors to which it refers, by name."""
        entries = []
        for each in self.lines:
            tensors = {"index": f"{each.name}.{each.axis}s.index", "values": f"{each.name}.{each.axis}s"}
            if each.base is not None:
                tensors["base"] = f"{each.name}.{each.axis}s.base"
            place = {"parameter": each.parameter, "axis": each.axis, "rows": each.rows, "order": each.order}
            entries.append({**place, **tensors})
        content = {
            "format_version": VERSION,
            "package_version": self.package_version,
            "base_model": self.base_model,
            "settings": self.settings,
            "extra": self.extra,
            "tied": self.tied,
            "lines": entries,
            "whole": sorted(self.whole),
            "whole_base": sorted(self.whole_base),
            "base": {name: list(asdict(each).values()) for name, each in self.base.items()},
        }
        return content, {name: values.contiguous() for name, values in self._tensors()}

    def without_prefix(self, prefix: str) -> "SliceFile":
        """The same file with shorter names, all of which begin with ``prefix``."""
        lines = [replace(each, parameter=each.parameter.removeprefix(prefix)) for each in self.lines]
        whole, whole_base = (
            {name.removeprefix(prefix): values for name, values in each.items()}
            for each in (self.whole, self.whole_base)
        )
        base = {name.removeprefix(prefix): each for name, each in self.base.items()}
        return replace(self, lines=lines, whole=whole, whole_base=whole_base, base=base)

    def to(self, device: torch.device) -> "SliceFile":
        """The same file, with its tensors on a device."""
        lines = [replace(each, index=each.index.to(device), values=each.values.to(device)) for each in self.lines]
        return replace(self, lines=lines, whole={name: each.to(device) for name, each in self.whole.items()})

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for each in self.lines:
            name = f"{each.name}.{each.axis}s"
            yield f"{name}.index", each.index
            yield name, each.values
            if each.base is not None:
                yield f"{name}.base", each.base
        yield from self.whole.items()
        yield from ((f"{name}.base", values) for name, values in self.whole_base.items())

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read and check a file.

        Raises:
            FileNotFoundError: It does not exist.
            ValueError: It is not a slice file, is damaged, or was written by a newer version.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"slice file {str(path)!r} does not exist, or is not a file; give the path of one.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except SafetensorError as error:
            raise ValueError(f"{str(path)!r} is damaged or not a safetensors file ({error}).") from None
        try:
            return cls._parse(metadata, tensors)
        except ValueError as error:
            raise ValueError(f"{str(path)!r} {error}") from None

    @classmethod
    def _parse(cls, metadata: Mapping[str, str], tensors: dict[str, Tensor]) -> Self:
        if KEY not in metadata:
            raise ValueError("is a safetensors file, but not a slice file; give one that handle.save() wrote.")
        try:
            entry = json.loads(metadata[KEY])
            checksum, content = entry["sha256"], entry["content"]
            _check_version(content["format_version"])
            if checksum != _checksum(content, tensors):
                raise ValueError("is damaged: its checksum does not fit its content.")
        except (KeyError, TypeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"has damaged metadata ({type(error).__name__}: {error}).") from None
        found = cls.unpack(content, tensors)
        for name, values in tensors.items():
            if values.is_floating_point() and not values.isfinite().all():
                raise ValueError(f"has values in {name} that are not finite.")
        return found

    @classmethod
    def unpack(cls, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Make a file of what :meth:`pack` returned.

        Raises:
            ValueError: The content is damaged, or was written by a newer version.
        """
        try:
            _check_version(content["format_version"])
            lines = [_parse_lines(each, tensors) for each in content["lines"]]
            whole = {str(name): tensors[name] for name in content["whole"]}
            whole_base = {str(name): tensors[f"{name}.base"] for name in content["whole_base"]}
            base = {str(name): _parse_fingerprint(*values) for name, values in content["base"].items()}
            settings, extra = dict(content["settings"]), dict(content["extra"])
            base_model, package = str(content["base_model"]), str(content["package_version"])
            tied = {str(name): str(first) for name, first in content["tied"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"has damaged metadata ({type(error).__name__}: {error}).") from None
        found = cls(lines, whole, base, base_model, settings, whole_base, extra, package, tied)
        found._check(tensors)
        return found

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        own = dict(self._tensors())
        lines = sum(2 + (each.base is not None) for each in self.lines)
        if len(own) != lines + len(self.whole) + len(self.whole_base):
            raise ValueError("stores the same lines twice.")
        if own.keys() != tensors.keys():
            raise ValueError(f"has tensors that its metadata does not name, such as {sorted(tensors.keys() - own)[0]}.")

    def base_tensors(self) -> dict[str, str]:
        """Names of the base's tensors, by the names of their fingerprints, which may be those of some of their rows."""
        return {name: ROWS.sub("", name) for name in self.base}

    def check_base(self, net: Tensors) -> None:
        """Check that a network is the base of this file, before anything is changed.

        Args:
            net: The network, or its tensors by name.

        Raises:
            ValueError: Something is missing, has another shape or type, or has other values.
        """
        tensors = self.check_shapes(net)
        for name, values in self.whole.items():
            if values.dtype != tensors[name].dtype:
                raise ValueError(f"{self._wrong_type(name, tensors[name].dtype, values.dtype)}{self._named_base()}.")
        self.check_values(tensors)

    def check_values(self, tensors: Mapping[str, Tensor]) -> None:
        """Check that tensors have the base's values, apart from those that the file contains whole.

        Raises:
            ValueError: Something is missing, has another shape or type, or has other values.
        """
        self._check_tied(tensors)
        stored = self.base_tensors()
        self._check_names(tensors, stored.values())
        matrices = {each.name: each for each in self.lines}
        places = {name: place for place, name in enumerate(tensors)}
        for name, expected in sorted(self.base.items(), key=lambda item: places[stored[item[0]]]):
            part = matrices[name].matrix(tensors[stored[name]]) if name in matrices else named_part(tensors, name)
            if not expected.fits(part):
                difference = self._difference(name, Fingerprint.of(part), expected)
                raise ValueError(f"{difference}{self._named_base()}.")

    def _check_tied(self, tensors: Mapping[str, Tensor]) -> None:
        trained = {*self.whole, *(each.parameter for each in self.lines)}
        for name, first in self.tied.items():
            own, shared = tensors.get(name), tensors.get(first)
            if own is None or shared is None or own is shared:
                continue
            if first in trained or not torch.equal(own, shared):
                raise ValueError(
                    f"{name} is not tied to {first} here, and was in training; tie them first{self._named_base()}."
                )

    def check_shapes(self, net: Tensors) -> Mapping[str, Tensor]:
        """Check that a network has the matrices of this file; returns its tensors by name.

        Raises:
            ValueError: Something is missing or has another shape.
        """
        tensors = stored_tensors(net)
        names = [*self.whole, *(each.parameter for each in self.lines), *self.base_tensors().values()]
        self._check_names(tensors, names)
        for each in self.lines:
            self._check_lines(each, tensors[each.parameter])
        return tensors

    def _check_names(self, tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
        if missing := [name for name in names if name not in tensors]:
            raise ValueError(f"The network lacks {missing[0]!r}; use the base model of the file{self._named_base()}.")

    def _check_lines(self, lines: SavedLines, stored: Tensor) -> None:
        try:
            matrix = lines.matrix(stored)
        except RuntimeError as error:
            raise ValueError(f"{lines.parameter} of shape {tuple(stored.shape)} does not fit ({error}).") from None
        dim = AXES[lines.axis]
        expected = [*matrix.shape[:dim], len(lines.index), *matrix.shape[dim + 1 :]]
        if list(lines.values.shape) != expected:
            raise ValueError(
                f"{lines.name} has the shape {tuple(matrix.shape)} here, which does not fit {lines.axis}s of shape"
                f" {tuple(lines.values.shape)}{self._named_base()}."
            )
        if len(lines.index) and int(lines.index[-1]) >= matrix.shape[dim]:
            raise ValueError(f"{lines.name} has {matrix.shape[dim]} {lines.axis}s, and not {int(lines.index[-1])}.")

    def _difference(self, name: str, found: Fingerprint, expected: Fingerprint) -> str:
        if found.dtype != expected.dtype:
            return self._wrong_type(name, found.dtype, expected.dtype)
        if found.shape != expected.shape:
            return f"{name} has the shape {found.shape} here, and had {expected.shape} in training"
        return (
            f"{name} has other values than the base model of the file (norm {found.norm:.6g} here,"
            f" {expected.norm:.6g} there). Use that base model; take another slice file out of it first"
        )

    @staticmethod
    def _wrong_type(name: str, found: torch.dtype | str, expected: torch.dtype | str) -> str:
        here, there = (str(each).removeprefix("torch.") for each in (found, expected))
        return f"{name} is {here} here, and was {there} in training; load the base model in that type"

    def _named_base(self) -> str:
        return f" ({self.base_model})" if self.base_model else ""


def stored_tensors(net: Tensors) -> Mapping[str, Tensor]:
    """All parameters of a network, also those that share another one's storage, and its buffers, by name.

    The names are those without ``torch.compile``.
    """
    if not isinstance(net, nn.Module):
        return net
    tensors = *net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)
    return {plain_name(name): tensor for name, tensor in tensors}


def plain_name(name: str) -> str:
    """The name that a tensor has in the network without ``torch.compile``."""
    return name.replace("_orig_mod.", "")


def named_part(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The tensor of a name: a parameter, a buffer, or some rows of one, ``parameter[first:stop]``."""
    rows = ROWS.search(name)
    return tensors[name] if rows is None else tensors[name[: rows.start()]][int(rows[1]) : int(rows[2])]


def _checksum(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of the content and of all tensors, with their names, types and shapes."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name, values in sorted(tensors.items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)} ".encode())
        digest.update(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_version(version: object) -> None:
    if type(version) is not int or not 0 < version <= VERSION:
        raise ValueError(f"has format version {version!r}, and this package reads {VERSION}; install a newer one.")


def _parse_fingerprint(dtype: str, shape: list[int], bits: int, norm: float) -> Fingerprint:
    return Fingerprint(str(dtype), tuple(map(int, shape)), int(bits), float(norm))


def _parse_lines(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SavedLines:
    axis, rows, order = entry["axis"], entry["rows"], tuple(map(int, entry["order"]))
    index, values = tensors[entry["index"]], tensors[entry["values"]]
    name = str(entry["parameter"])
    if axis not in AXES:
        raise ValueError(f"has lines of {name} along the axis {axis!r}; it must be one of {', '.join(AXES)}.")
    if index.dtype != torch.int64 or index.dim() != 1 or not (index.diff() > 0).all() or (index < 0).any():
        raise ValueError(f"has indices of {name} that are not ascending whole numbers from 0, each once.")
    if sorted(order) != list(range(values.dim())) or values.dim() < 2:
        raise ValueError(f"has values of {name} with {values.dim()} dimensions in the order {order}.")
    base = tensors[entry["base"]] if "base" in entry else None
    if base is not None and (base.shape != values.shape or base.dtype != values.dtype):
        raise ValueError(f"has values and base values of {name} of different shapes or types.")
    return SavedLines(name, axis, None if rows is None else (int(rows[0]), int(rows[1])), order, index, values, base)
