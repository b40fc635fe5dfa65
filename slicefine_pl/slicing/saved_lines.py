"""Trained columns or rows of one matrix, as a slice file contains them.

Shapes:  O outputs · I inputs · n lines
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from slicefine_pl.slicing.fingerprint import Fingerprint
from slicefine_pl.slicing.saved_matrix import SavedMatrix, parse_place
from slicefine_pl.slicing.schedule import Axis

AXES = {"column": 1, "row": 0}  # dimension along which lines are stored


@dataclass(frozen=True, kw_only=True)
class SavedLines(SavedMatrix):
    """Columns or rows of one matrix.

    Attributes:
        axis: Columns or rows.
        index: Which lines, ascending, shape ``(n,)``, int64.
        values: Their values, shape ``(O, n, ...)`` or ``(n, I, ...)``, in the type of the parameter.
        base: The values in the base, if they were saved; without them the lines cannot be taken back out of a network
            whose base is not at hand.
    """

    replaces_all = False

    axis: Axis
    index: Tensor
    values: Tensor
    base: Tensor | None = None

    @property
    def has_base(self) -> bool:
        return self.base is not None

    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        name = f"{self.name}.{self.axis}s"
        yield "index", f"{name}.index", self.index
        yield "values", name, self.values
        if self.base is not None:
            yield "base", f"{name}.base", self.base

    def to(self, device: torch.device) -> Self:
        base = None if self.base is None else self.base.to(device)
        return replace(self, index=self.index.to(device), values=self.values.to(device), base=base)

    def place(self) -> dict[str, Any]:
        return {**super().place(), "axis": self.axis}

    def check_shape(self, stored: Tensor) -> None:
        shape, dim = self._viewed(stored).shape, AXES[self.axis]
        if list(self.values.shape) != [*shape[:dim], len(self.index), *shape[dim + 1 :]]:
            raise ValueError(
                f"{self.name} has the shape {tuple(shape)} here, which does not fit {self.axis}s of shape"
                f" {tuple(self.values.shape)}"
            )
        if len(self.index) and int(self.index[-1]) >= shape[dim]:
            raise ValueError(f"{self.name} has {shape[dim]} {self.axis}s, and not {int(self.index[-1])}")

    def read(self, stored: Tensor) -> Tensor:
        return self.matrix(stored.detach()).index_select(AXES[self.axis], self.index.to(stored.device))

    @torch.no_grad()
    def write(self, stored: Tensor, part: Tensor) -> None:
        index = self.index.to(stored.device)
        self.matrix(stored.data).index_copy_(AXES[self.axis], index, part.to(stored.device))

    def trained(self, stored: Tensor) -> Tensor:
        return self.values

    def with_base(self, stored: Tensor) -> Self:
        return replace(self, base=self.read(stored).cpu())

    def taken_out(self, stored: Tensor, base: Fingerprint) -> Tensor | None:
        return self.base if torch.equal(self.read(stored).cpu(), self.values.cpu()) else None


def parse_lines(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SavedLines:
    """Make lines of the plain values and tensors of a file.

    Raises:
        KeyError, TypeError: Something is missing.
        ValueError: Axis, indices or shapes cannot be.
    """
    place, axis = parse_place(entry), entry["axis"]
    name, order = place["parameter"], place["order"]
    index, values = tensors[entry["index"]], tensors[entry["values"]]
    if axis not in AXES:
        raise ValueError(f"has lines of {name} along the axis {axis!r}; it must be one of {', '.join(AXES)}.")
    if index.dtype != torch.int64 or index.dim() != 1 or not (index.diff() > 0).all() or (index < 0).any():
        raise ValueError(f"has indices of {name} that are not ascending whole numbers from 0, each once.")
    if sorted(order) != list(range(values.dim())) or values.dim() < 2:
        raise ValueError(f"has values of {name} with {values.dim()} dimensions in the order {order}.")
    base = tensors[entry["base"]] if "base" in entry else None
    if base is not None and (base.shape != values.shape or base.dtype != values.dtype):
        raise ValueError(f"has values and base values of {name} of different shapes or types.")
    return SavedLines(**place, axis=axis, index=index, values=values, base=base)
