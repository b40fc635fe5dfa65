"""The change of one matrix along directions of its input, as a slice file contains it.

All entries of the matrix change, by the product of two thin factors. Adding it to the base rounds once, and training
rounded at every step, so the result equals the trained matrix up to rounding.

Shapes:  O outputs · I inputs · K entries of a convolution's kernel · n directions · k entries that subtracting does not
give back
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from slicefine_pl.slicing.fingerprint import Fingerprint
from slicefine_pl.slicing.layout import flatten_kernel, unflatten_kernel
from slicefine_pl.slicing.rounding import may_differ
from slicefine_pl.slicing.saved_matrix import SavedMatrix, parse_place
from slicefine_pl.slicing.thin_products import add_product, in_double, row_blocks

MARGIN = 1e-13  # error of a sum in float64, relative to the lengths of the factors; depends on how it is computed
FACTOR_TYPES = (torch.float32, torch.float64)
INDEX_TYPES = (torch.int32, torch.int64)


class LostEntries(NamedTuple):
    """The entries of the base's matrix that subtracting the change from the trained one might not give back.

    Attributes:
        indices: Their places in the flattened matrix ``(O · K, I)``, ascending, shape ``(k,)``, int32 or int64.
        values: Their values in the base, shape ``(k,)``, in the type of the matrix.
    """

    indices: Tensor
    values: Tensor


@dataclass(frozen=True, kw_only=True)
class SavedDirections(SavedMatrix):
    """The change of a matrix W to ``W + change directionsᵀ``.

    Attributes:
        directions: Orthonormal directions of the input, at all positions of the slice, shape ``(I, n)``, float32, or
            float64 for a matrix in float64.
        change: The change of the matrix along each, shape ``(O · K, n)``, in the type of ``directions``.
        lost: The entries of the base that subtracting the change does not give back, if they were saved.
    """

    replaces_all = True

    directions: Tensor
    change: Tensor
    lost: LostEntries | None = None

    @property
    def has_base(self) -> bool:
        return self.lost is not None

    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        yield "directions", f"{self.name}.directions", self.directions
        yield "change", f"{self.name}.change", self.change
        if self.lost is not None:
            yield "lost_index", f"{self.name}.lost.index", self.lost.indices
            yield "lost", f"{self.name}.lost", self.lost.values

    def to(self, device: torch.device) -> Self:
        lost = None if self.lost is None else LostEntries(*(each.to(device) for each in self.lost))
        return replace(self, directions=self.directions.to(device), change=self.change.to(device), lost=lost)

    def check_shape(self, stored: Tensor) -> None:
        matrix, here = self._viewed(stored), (len(self.change), len(self.directions))
        if flatten_kernel(matrix).shape != here:
            raise ValueError(
                f"{self.name} has the shape {tuple(matrix.shape)} here, which does not fit a change of shape {here}"
            )
        if self.lost is None:
            return
        if self.lost.values.dtype != stored.dtype:
            raise ValueError(f"{self.name} is {stored.dtype} here, and {self.lost.values.dtype} in the file")
        if len(self.lost.indices) and int(self.lost.indices[-1]) >= matrix.numel():
            raise ValueError(f"{self.name} has {matrix.numel()} entries, and not {int(self.lost.indices[-1])}")

    def read(self, stored: Tensor) -> Tensor:
        return self.matrix(stored.detach()).clone()

    @torch.no_grad()
    def write(self, stored: Tensor, part: Tensor) -> None:
        self.matrix(stored.data).copy_(part)

    def trained(self, stored: Tensor) -> Tensor:
        return self._added(stored, 1)

    def _added(self, stored: Tensor, factor: int) -> Tensor:
        """The matrix of a parameter plus the change times a factor, 1 or -1."""
        matrix = self.matrix(stored)
        return unflatten_kernel(add_product(flatten_kernel(matrix), self.change, self.directions, factor), matrix.shape)

    def with_base(self, stored: Tensor) -> Self:
        base, trained = flatten_kernel(self.read(stored)), flatten_kernel(self.trained(stored))
        change, directions = in_double(self.change, base), in_double(self.directions, base)
        lengths, found = directions.norm(dim=1), list[Tensor]()
        for rows in row_blocks(base):
            restored = in_double(trained[rows], base)
            # Another machine may add in another order, and then round a sum between two numbers to the other one.
            error = MARGIN * (torch.outer(change[rows].norm(dim=1), lengths) + restored.abs())
            restored.addmm_(change[rows], directions.t(), alpha=-1)
            lost = may_differ(restored, error, base[rows].to(restored.device))
            found.append(lost.flatten().nonzero().flatten() + rows.start * base.shape[1])
        index = torch.cat(found)
        values = base.flatten()[index.to(base.device)].cpu()
        small = torch.int32 if base.numel() <= torch.iinfo(torch.int32).max else torch.int64
        return replace(self, lost=LostEntries(index.cpu().to(small), values))

    def taken_out(self, stored: Tensor, base: Fingerprint) -> Tensor | None:
        assert self.lost is not None
        restored = self._added(stored, -1)
        rows = flatten_kernel(restored)  # a view: restored is stored in this order
        rows.view(-1)[self.lost.indices.to(rows.device).long()] = self.lost.values.to(rows.device)
        return restored if base.fits(restored) else None


def parse_directions(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SavedDirections:
    """Make directions of the plain values and tensors of a file.

    Raises:
        KeyError, TypeError: Something is missing.
        ValueError: Shapes or types cannot be.
    """
    place = parse_place(entry)
    name, order = place["parameter"], place["order"]
    directions, change = tensors[entry["directions"]], tensors[entry["change"]]
    if len(order) < 2 or sorted(order) != list(range(len(order))):
        raise ValueError(f"has directions of {name} with the order {order}, which is no order of dimensions.")
    if directions.dtype not in FACTOR_TYPES or change.dtype != directions.dtype:
        raise ValueError(f"has directions of {name} in {directions.dtype} and their change in {change.dtype}.")
    if directions.dim() != 2 or change.dim() != 2 or directions.shape[1] != change.shape[1]:
        shapes = " and ".join(str(tuple(each.shape)) for each in (directions, change))
        raise ValueError(f"has directions of {name} and their change of the shapes {shapes}, which do not fit.")
    lost = None
    if "lost" in entry:
        lost = LostEntries(tensors[entry["lost_index"]], tensors[entry["lost"]])
        _check_lost(name, lost)
    return SavedDirections(**place, directions=directions, change=change, lost=lost)


def _check_lost(name: str, lost: LostEntries) -> None:
    index = lost.indices
    if index.dtype not in INDEX_TYPES or index.dim() != 1 or lost.values.shape != index.shape:
        raise ValueError(f"has entries of the base of {name} whose indices and values do not fit.")
    if not (index.diff() > 0).all() or (index < 0).any():
        raise ValueError(f"has indices of {name} that are not ascending whole numbers from 0, each once.")
