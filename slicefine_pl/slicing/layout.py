"""Where a matrix lies in a parameter.

A slice is a set of rows or columns of a matrix ``(O, I, ...)``. A parameter may store that matrix transposed, hold
several matrices one below the other, or hold a stack of matrices. :class:`MatrixLayout` describes these cases once, so
that the rest of the package sees rows and columns only.

Shapes:  O outputs · I inputs · ... kernel dimensions of a convolution · K entries of the kernel
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from slicefine_pl.slicing.schedule import Axis


@dataclass(frozen=True)
class MatrixLayout:
    """How a parameter of a module stores a matrix ``(O, I, ...)``.

    Attributes:
        parameter: Name of the parameter in its module.
        part: Name of the matrix, where the parameter stores several, such as ``"q"`` in a fused ``in_proj_weight``.
        first_row: First row of the matrix along the parameter's first dimension.
        num_rows: Number of rows; ``None`` takes all.
        transposed: Whether the parameter, or each matrix of a stack, is stored as ``(I, O)``.
        stack: Number of leading dimensions that count matrices, such as 1 for mixture-of-experts weights
            ``(E, O, I)``. They come last in the matrix, ``(O, I, E)``: a line is the same line of every expert.
    """

    parameter: str = "weight"
    part: str = ""
    first_row: int = 0
    num_rows: int | None = None
    transposed: bool = False
    stack: int = 0

    def view(self, stored: Tensor) -> Tensor:
        """The matrix as a view of a tensor that is stored like the whole parameter, shape ``(O, I, ...)``."""
        return self.arrange(stored if self.num_rows is None else stored.narrow(0, self.first_row, self.num_rows))

    def arrange(self, stored: Tensor) -> Tensor:
        """Permute the dimensions of stored values to ``(O, I, ...)``, as a view."""
        return stored.permute(self.order(stored.ndim)) if self.stack or self.transposed else stored

    def order(self, ndim: int) -> list[int]:
        """For each dimension of the matrix, the dimension of the parameter that it is."""
        first, second, *kernel = range(self.stack, ndim)
        matrix = [second, first] if self.transposed else [first, second]
        return [*matrix, *kernel, *range(self.stack)]


def flatten_kernel(matrix: Tensor) -> Tensor:
    """A matrix ``(O, I, ...)`` with one row for each output and kernel position, shape ``(O · K, I)``.

    A view where the kernel has one entry, or the matrix none, and a copy otherwise.
    """
    return matrix.movedim(1, -1).flatten(0, -2)


def unflatten_kernel(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """The opposite of :func:`flatten_kernel`, as a view; ``shape`` is that of the matrix."""
    outputs, inputs, *kernel = shape
    return rows.view(outputs, *kernel, inputs).movedim(-1, 1)


def lines_along(matrix: Tensor, axis: Axis) -> Tensor:
    """View a matrix ``(O, I, ...)`` as its columns, shape ``(I, O, ...)``, or as its rows, shape ``(O, I, ...)``."""
    return matrix.transpose(0, 1) if axis == "column" else matrix
