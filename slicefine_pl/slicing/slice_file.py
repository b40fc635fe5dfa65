"""What was trained, as a file: what changed of each matrix, and the parameters that were trained whole.

A slice file is a safetensors file. The entry ``slicefine`` of its metadata is JSON, ``{"sha256", "content"}``: one
entry, because safetensors stores several in any order. The hash is that of the content and of all tensors. The content:

- ``format_version``: 2 if the file contains directions, else 1; ``package_version``: of the package that wrote it;
  ``base_model``: name, may be empty
- ``settings``: rank, axis and the other settings of the slices; ``extra``: values for the code that builds the network
- ``lines``: for each set of lines ``parameter``, ``axis``, ``rows``, ``order``, and the names of its tensors:
  ``index``, ``values`` and perhaps ``base``
- ``directions``, from version 2: for each matrix ``parameter``, ``rows``, ``order``, and the names of its tensors:
  ``directions``, ``change``, and perhaps ``lost_index`` and ``lost``
- ``whole``: names of the parameters and buffers that are stored whole, under these names; ``whole_base``: those of
  which the base's values are stored as well, under the name followed by ``.base``
- ``base``: fingerprints of the base's tensors, ``[type, shape, bits, norm]`` by name; ``tied``: the first name of each
  parameter that has several, by the others

A matrix (O, I, ...) is the parameter, narrowed to ``rows`` = [first, count] if that is not null, with its dimensions
permuted to ``order``. Columns are stored as (O, n, ...), rows as (n, I, ...), with their indices (n,) beside them.

A matrix with directions is read as one row for each output and entry of the kernel (K), (O · K, I). After training it
is ``matrix + change @ directions.T``, computed in float64 and rounded to the type of the matrix; ``directions`` (I, n)
and ``change`` (O · K, n) are float32, or float64 for a float64 matrix. The base is the trained matrix minus the same
product, apart from the entries ``lost`` (k,) at ``lost_index`` (k,) of the flattened matrix.

Version 1 had no directions. A reader of version 1 refuses a file of version 2, because it would leave them out.

Shapes:  O outputs · I inputs · K entries of a convolution's kernel · n lines or directions · k lost entries
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from slicefine_pl.files.atomic import write_atomic
from slicefine_pl.slicing.base_check import BaseCheck
from slicefine_pl.slicing.fingerprint import Fingerprint
from slicefine_pl.slicing.named_tensors import Tensors, tensor_name
from slicefine_pl.slicing.saved_directions import SavedDirections, parse_directions
from slicefine_pl.slicing.saved_lines import SavedLines, parse_lines
from slicefine_pl.slicing.saved_matrix import SavedMatrix

KEY = "slicefine"
LINES, DIRECTIONS = 1, 2  # the version from which files may contain them
VERSION = DIRECTIONS  # the newest that this package reads


@dataclass(frozen=True)
class SliceFile:
    """The content of a slice file.

    Attributes:
        lines: The trained lines, by matrix.
        whole: Parameters that were trained whole, and buffers that training changed, by name.
        whole_base: Their values in the base, where these were saved.
        base: Fingerprints of the base: of each matrix that was trained, by :attr:`SavedLines.name`, and of everything
            else, by the name of the tensor, or ``name[first:stop]`` for rows of one.
        base_model: Name of the base model; may be empty.
        settings: The settings of the slices.
        extra: Plain values for the code that builds the network, such as the names of the classes.
        package_version: Version of the package that wrote the file.
        tied: For each further name of a parameter that has several, the first, under which it is stored.
        directions: The changes along directions, by matrix.
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
    directions: list[SavedDirections] = field(default_factory=list)

    @property
    def matrices(self) -> list[SavedMatrix]:
        """What was trained of each matrix: lines and directions."""
        return [*self.lines, *self.directions]

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
        content = {
            "format_version": DIRECTIONS if self.directions else LINES,
            "package_version": self.package_version,
            "base_model": self.base_model,
            "settings": self.settings,
            "extra": self.extra,
            "tied": self.tied,
            "lines": [_packed(each) for each in self.lines],
            "whole": sorted(self.whole),
            "whole_base": sorted(self.whole_base),
            "base": {name: list(asdict(each).values()) for name, each in self.base.items()},
        }
        if self.directions:
            content["directions"] = [_packed(each) for each in self.directions]
        return content, {name: values.contiguous() for name, values in self._tensors()}

    def without_prefix(self, prefix: str) -> "SliceFile":
        """The same file with shorter names, all of which begin with ``prefix``."""
        lines = [replace(each, parameter=each.parameter.removeprefix(prefix)) for each in self.lines]
        directions = [replace(each, parameter=each.parameter.removeprefix(prefix)) for each in self.directions]
        whole, whole_base = (
            {name.removeprefix(prefix): values for name, values in each.items()}
            for each in (self.whole, self.whole_base)
        )
        base = {name.removeprefix(prefix): each for name, each in self.base.items()}
        return replace(self, lines=lines, directions=directions, whole=whole, whole_base=whole_base, base=base)

    def to(self, device: torch.device) -> "SliceFile":
        """The same file, with its tensors on a device."""
        lines, directions = [each.to(device) for each in self.lines], [each.to(device) for each in self.directions]
        whole = {name: each.to(device) for name, each in self.whole.items()}
        return replace(self, lines=lines, directions=directions, whole=whole)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for each in self.matrices:
            yield from ((name, values) for _, name, values in each.tensors())
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
            lines = [parse_lines(each, tensors) for each in content["lines"]]
            saved = content["directions"] if content["format_version"] >= DIRECTIONS else []
            directions = [parse_directions(each, tensors) for each in saved]
            whole = {str(name): tensors[name] for name in content["whole"]}
            whole_base = {str(name): tensors[f"{name}.base"] for name in content["whole_base"]}
            base = {str(name): _parse_fingerprint(*values) for name, values in content["base"].items()}
            settings, extra = dict(content["settings"]), dict(content["extra"])
            base_model, package = str(content["base_model"]), str(content["package_version"])
            tied = {str(name): str(first) for name, first in content["tied"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"has damaged metadata ({type(error).__name__}: {error}).") from None
        found = cls(lines, whole, base, base_model, settings, whole_base, extra, package, tied, directions)
        found._check(tensors)
        return found

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        own = list(self._tensors())
        if len(dict(own)) != len(own):
            raise ValueError("stores the same lines twice.")
        if both := {each.name for each in self.lines} & {each.name for each in self.directions}:
            raise ValueError(f"stores lines and directions of {min(both)}; a matrix is trained along one of them.")
        if missing := [each.name for each in self.matrices if each.name not in self.base]:
            raise ValueError(f"lacks the fingerprint of the base's {missing[0]}.")
        if dict(own).keys() != tensors.keys():
            unknown = sorted(tensors.keys() - dict(own))[0]
            raise ValueError(f"has tensors that its metadata does not name, such as {unknown}.")

    def base_tensors(self) -> dict[str, str]:
        """Names of the base's tensors, by the names of their fingerprints, which may be those of some of their rows."""
        return {name: tensor_name(name) for name in self.base}

    @property
    def _base_check(self) -> BaseCheck:
        return BaseCheck(self.matrices, self.whole, self.base, self.tied, self.base_model)

    def check_base(self, net: Tensors) -> None:
        """Check that a network is the base of this file, before anything is changed.

        Args:
            net: The network, or its tensors by name.

        Raises:
            ValueError: Something is missing, has another shape or type, or has other values.
        """
        self._base_check.network(net)

    def check_values(self, tensors: Mapping[str, Tensor]) -> None:
        """Check that tensors have the base's values, apart from those that the file contains whole.

        Raises:
            ValueError: Something is missing, has another shape or type, or has other values.
        """
        self._base_check.values(tensors)

    def check_shapes(self, net: Tensors) -> Mapping[str, Tensor]:
        """Check that a network has the matrices of this file; returns its tensors by name.

        Raises:
            ValueError: Something is missing or has another shape.
        """
        return self._base_check.shapes(net)


def _packed(matrix: SavedMatrix) -> dict[str, Any]:
    return matrix.place() | {key: name for key, name, _ in matrix.tensors()}


def _checksum(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of the content and of all tensors, with their names, types and shapes."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name, values in sorted(tensors.items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)} ".encode())
        digest.update(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_version(version: object) -> None:
    if type(version) is not int or not 0 < version <= VERSION:
        raise ValueError(
            f"has format version {version!r}, and this package reads versions up to {VERSION}; install a newer one."
        )


def _parse_fingerprint(dtype: str, shape: list[int], bits: int, norm: float) -> Fingerprint:
    return Fingerprint(str(dtype), tuple(map(int, shape)), int(bits), float(norm))
