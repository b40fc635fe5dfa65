"""The public view of an open slice, and the interface of listeners that follow its moves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from slicefine_pl.slicing.layout import MatrixLayout
from slicefine_pl.slicing.schedule import Axis
from slicefine_pl.slicing.slice import trained_lines


@dataclass(frozen=True)
class SliceView:
    """One open slice, as it is now. After a move, ask the handle for a new view.

    Attributes:
        name: Name of the layer, followed by the parameter and the part of it where that is not simply ``weight``.
        axis: Whether the slice consists of columns or of rows.
        indices: Which columns or rows, shape ``(R,)``, int64; with directions, their numbers.
        parameter: The trainable values, shape ``(R, L)``: one line of the matrix per row, or, with ``lr_scale``, its
            change since the slice arrived, divided by ``scale``. The gradient is that of the line in both cases.
        base: The lines when the slice arrived, shape ``(R, L)``; ``None`` if ``parameter`` contains the lines. With
            directions, the values of ``parameter`` at the last write.
        scale: Factor of the change, from ``lr_scale``.
        directions: The directions of the input along which the slice lies, orthonormal columns, shape ``(I, R)``;
            ``None`` for columns and rows.
        shape: Shape of the matrix in which the slice lies, ``(O, I, ...)``.
        stored: The frozen parameter that stores that matrix, and maybe others, as in fused attention weights.
        layout: How it stores the matrix.
    """

    name: str
    axis: Axis
    indices: Tensor
    parameter: nn.Parameter
    base: nn.Parameter | None
    scale: float
    directions: Tensor | None
    shape: tuple[int, ...]
    stored: nn.Parameter
    layout: MatrixLayout

    def lines(self) -> Tensor:
        """The present values of the lines, shape ``(R, L)``, outside autograd; sharded as ``parameter`` is.

        Raises:
            ValueError: The slice lies along directions, and changes all lines.
        """
        if self.directions is not None:
            raise ValueError(
                f"The slice of {self.name} lies along directions and changes all columns, so it has no lines. Read its"
                " parameter, scale and directions."
            )
        return trained_lines(self.parameter, self.base, self.scale)


class MoveListener(Protocol):
    """An object that is called when slices move; see :meth:`SliceHandle.add_move_listener`."""

    def before_move(self, slices: Sequence[SliceView]) -> None:
        """Called before these slices move. Their trained values have been written to the weights."""

    def after_move(self, slices: Sequence[SliceView]) -> None:
        """Called after these slices moved, before they are trained at their new positions."""
