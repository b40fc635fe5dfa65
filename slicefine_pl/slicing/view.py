"""What others see of an open slice: its name, its place, its values, and when it moves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from slicefine_pl.slicing.schedule import Axis


@dataclass(frozen=True)
class SliceView:
    """One slice that is being trained.

    Attributes:
        name: Of its layer; followed by the parameter, and the block in it, where that is not simply ``weight``.
        line: Whether the slice is made of columns or of rows.
        indices: Which ones, shape ``(R,)``.
        parameter: The trainable values, shape ``(R, L)``, one line of the weight below the other.
        shape: Of the matrix in which they lie, ``(O, I, ...)``.
        stored: The frozen parameter that holds that matrix; maybe others too, as in a fused attention.
    """

    name: str
    axis: Axis
    indices: Tensor
    parameter: nn.Parameter
    shape: tuple[int, ...]
    stored: nn.Parameter


class MoveListener(Protocol):
    """Who is told when slices move, see :meth:`SliceHandle.add_move_listener`."""

    def before_move(self, slices: Sequence[SliceView]) -> None:
        """These slices are about to leave where they stand; what they learned is in the weights."""

    def after_move(self, slices: Sequence[SliceView]) -> None:
        """These slices stand at new places, and have learned nothing there yet."""
