"""The directions at which a slice has been, and the change of the matrix along them.

The base is not needed for that, only its components along the directions, which are read when the slice arrives. The
change at the end is the difference of the components then and now. So it is always the change of the weights that the
network has, also after those of an earlier checkpoint were loaded.

Shapes:  O outputs · I inputs · K entries of a convolution's kernel · R directions of a slice · n directions of all its
positions
"""

from dataclasses import astuple
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slicefine_pl.slicing.directions import random_matrix
from slicefine_pl.slicing.fingerprint import Fingerprint
from slicefine_pl.slicing.layout import flatten_kernel
from slicefine_pl.slicing.rounding import HALF
from slicefine_pl.slicing.thin_products import along

PROBES = 8  # one alone misses a change that happens to be orthogonal to it
SMALLEST = 1e-13  # length of a direction that adds something; shorter ones are rounding errors of float64


class ThinChange(NamedTuple):
    """The change ``change directionsᵀ`` of a matrix.

    Attributes:
        directions: Orthonormal directions, shape ``(I, n)``, float32, or float64 for a matrix in float64.
        change: The change along each, shape ``(O · K, n)``, of the same type.
    """

    directions: Tensor
    change: Tensor


class VisitedDirections:
    """An orthonormal basis of all directions at which a slice has been, with the base's components along it.

    It is dropped when it becomes larger than the matrix; a file then contains the matrix itself.

    Args:
        matrix: The matrix before training, shape ``(O, I, ...)``.
        key: Seed of random vectors. The base's components along them show changes outside of the directions.

    Attributes:
        base: Fingerprint of the matrix before training; ``None`` if it had no values yet.
    """

    def __init__(self, matrix: Tensor, key: str) -> None:
        self.base = None if matrix.is_meta else Fingerprint.of(matrix)
        rows = flatten_kernel(matrix)
        outputs, inputs = rows.shape
        self._probe = random_matrix(inputs, PROBES, key)
        self._probed = torch.zeros(0) if matrix.is_meta else along(rows, self._probe)
        factors = torch.promote_types(matrix.dtype, torch.float32)
        self._directions: Tensor | None = torch.zeros(inputs, 0, dtype=factors)
        self._components = torch.zeros(outputs, 0, dtype=torch.float64)
        self._arrivals = 0

    def arrive(self, directions: Tensor, matrix: Tensor) -> None:
        """Note directions at which a slice arrives, before it is trained there.

        Args:
            directions: Shape ``(I, R)``.
            matrix: The whole matrix, shape ``(O, I, ...)``, with all that was trained so far.
        """
        before, matrix = self._directions, flatten_kernel(matrix)
        if before is None or matrix.is_meta:
            return
        self._arrivals += 1
        new = _beyond(before, directions.cpu())
        count = before.shape[1] + new.shape[1]
        if before.shape[1] and count * sum(matrix.shape) > matrix.numel():
            self._directions, self._components = None, self._components[:, :0]
            return
        # What was trained before lies in the directions before, so these components are still those of the base.
        self._components = torch.cat([self._components, along(matrix, new)], dim=1)
        self._directions = torch.cat([before, new], dim=1)

    @property
    def dropped(self) -> bool:
        """Whether there were so many directions that a file would need more numbers than the matrix has."""
        return self._directions is None

    def changed(self, matrix: Tensor) -> ThinChange | None:
        """The change of the matrix since the beginning: of all products of these directions, the nearest one.

        Args:
            matrix: The whole matrix, shape ``(O, I, ...)``, at present.

        Returns:
            The factors; ``None`` if the matrix has changed outside of these directions, or these were dropped.
        """
        if self._directions is None:
            return None
        matrix = flatten_kernel(matrix)
        change = along(matrix, self._directions) - self._components
        if not self._explains(matrix, change, self._directions):
            return None
        # A slice that has just arrived changed nothing yet. Products of other sizes round differently.
        used = change.norm(dim=0) > 64 * torch.finfo(torch.float64).eps * self._components.norm(dim=0)
        kept = used if used.any() else ~used
        return ThinChange(self._directions[:, kept], change[:, kept].to(self._directions.dtype))

    def _explains(self, matrix: Tensor, change: Tensor, directions: Tensor) -> bool:
        """Whether the matrix is the base with a change, row by row.

        That is up to rounding: in half precision once for each position, otherwise at many steps.
        """
        if self.base is None or str(matrix.dtype).removeprefix("torch.") != self.base.dtype:
            return False
        rest = along(matrix, self._probe) - self._probed - change @ (directions.double().t() @ self._probe)
        rounding = torch.finfo(matrix.dtype).eps * (4 * self._arrivals**0.5 if matrix.dtype in HALF else 2**13)
        length = matrix.detach().float().norm(dim=1).cpu() + change.norm(dim=1)
        fits = rest.norm(dim=1) <= rounding * length * PROBES**0.5
        return bool(fits.all()) or not bool(change.isfinite().all())  # the file refuses what is not finite

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as plain values and tensors."""
        return {
            "base": None if self.base is None else astuple(self.base),
            "probed": self._probed.clone(),
            "directions": None if self._directions is None else self._directions.clone(),
            "components": self._components.clone(),
            "arrivals": self._arrivals,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.base = None if state["base"] is None else Fingerprint(*state["base"])
        self._probed, self._components = state["probed"].clone(), state["components"].clone()
        self._arrivals = state["arrivals"]
        self._directions = None if state["directions"] is None else state["directions"].clone()


def _beyond(before: Tensor, directions: Tensor) -> Tensor:
    """An orthonormal basis of what directions ``(I, R)`` add to the space of others ``(I, n)``, in the type of those.

    What lies in that space up to rounding adds nothing.
    """
    known = before.double()
    vectors, lengths, _ = torch.linalg.svd(_without(known, directions.double()), full_matrices=False)
    new = vectors[:, lengths > max(4 * torch.finfo(before.dtype).eps, SMALLEST)]
    basis: Tensor = torch.linalg.qr(_without(known, new)).Q  # short vectors had large relative errors
    return basis.to(before.dtype)


def _without(space: Tensor, vectors: Tensor) -> Tensor:
    """Vectors ``(I, m)`` without their components in the space of orthonormal ones ``(I, n)``."""
    return vectors - space @ (space.t() @ vectors)
