"""What a slice file contains of one matrix: the interface of its two kinds of entries.

Shapes:  O outputs · I inputs
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from slicefine_pl.slicing.fingerprint import Fingerprint
from slicefine_pl.slicing.named_tensors import name_of_rows


@dataclass(frozen=True, kw_only=True)
class SavedMatrix(ABC):
    """What was trained of one matrix.

    An entry replaces a *part* of the matrix: its lines, or all of it.

    Attributes:
        parameter: Name of the parameter that stores the matrix.
        rows: First row and number of rows of the matrix in the parameter; ``None`` if it is all of them.
        order: For each dimension of the matrix ``(O, I, ...)``, the dimension of the parameter that it is.
    """

    replaces_all: ClassVar[bool]
    """Whether the part is all of the matrix, and rounded when it is computed."""

    parameter: str
    rows: tuple[int, int] | None
    order: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of the matrix."""
        return name_of_rows(self.parameter, self.rows)

    def matrix(self, stored: Tensor) -> Tensor:
        """The matrix as a view of the parameter, shape ``(O, I, ...)``."""
        return (stored if self.rows is None else stored.narrow(0, *self.rows)).permute(self.order)

    def place(self) -> dict[str, Any]:
        """Where the matrix lies, as plain values for the file."""
        return {"parameter": self.parameter, "rows": self.rows, "order": self.order}

    @abstractmethod
    def to(self, device: torch.device) -> Self:
        """The same entry, with its tensors on a device."""

    @property
    @abstractmethod
    def has_base(self) -> bool:
        """Whether the entry contains what turns the trained part back into that of the base."""

    @abstractmethod
    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """The tensors of the entry: the key in the file's metadata, the name in the file, and the values."""

    @abstractmethod
    def check_shape(self, stored: Tensor) -> None:
        """Check that the entry fits a parameter.

        Raises:
            ValueError: It does not.
        """

    @abstractmethod
    def read(self, stored: Tensor) -> Tensor:
        """A copy of the part in a parameter."""

    @abstractmethod
    def write(self, stored: Tensor, part: Tensor) -> None:
        """Replace the part in a parameter."""

    @abstractmethod
    def trained(self, stored: Tensor) -> Tensor:
        """The trained part; ``stored`` is the parameter in the base, and does not change."""

    @abstractmethod
    def with_base(self, stored: Tensor) -> Self:
        """The entry with what turns the trained part back; ``stored`` is the parameter in the base."""

    @abstractmethod
    def taken_out(self, stored: Tensor, base: Fingerprint) -> Tensor | None:
        """The base's part, if :attr:`has_base`; ``None`` if a network does not contain what was trained.

        Args:
            stored: The parameter in the network; it does not change.
            base: Fingerprint of the matrix in the base.
        """

    def _viewed(self, stored: Tensor) -> Tensor:
        """The matrix in a parameter.

        Raises:
            ValueError: The parameter has no such matrix.
        """
        try:
            return self.matrix(stored)
        except RuntimeError as error:
            raise ValueError(f"{self.parameter} of shape {tuple(stored.shape)} does not fit ({error})") from None


def parse_place(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Where a matrix lies, of the plain values in a file; the arguments of :class:`SavedMatrix`."""
    rows = entry["rows"]
    return {
        "parameter": str(entry["parameter"]),
        "rows": None if rows is None else (int(rows[0]), int(rows[1])),
        "order": tuple(map(int, entry["order"])),
    }
