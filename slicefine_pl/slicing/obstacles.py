"""Why a matrix is not sliced, as a reason in words."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from slicefine_pl.network.heads import Head
from slicefine_pl.network.layers import tied_parameters
from slicefine_pl.network.names import NamePatterns
from slicefine_pl.slicing.directions import Basis
from slicefine_pl.slicing.layers.attention import SlicedMultiheadAttention
from slicefine_pl.slicing.layers.conv import SlicedConv
from slicefine_pl.slicing.layers.linear import SlicedLinear
from slicefine_pl.slicing.layers.masked import MaskedLayer
from slicefine_pl.slicing.layers.registry import COMPACT_LAYERS, Backend, SliceableMatrix
from slicefine_pl.slicing.packed import can_be_trained, untrainable_reason
from slicefine_pl.slicing.schedule import Axis

TRAINED_IN_FULL = "trained in full"
TIED = "its weight is tied"
OUTPUT_HEAD = "output head"
FROZEN = "frozen already"
BY_NAME = "not sliced by default"
EXCLUDED = "excluded"


@dataclass(frozen=True)
class TargetSettings:
    """The arguments of :func:`slice_model` that decide what is sliced."""

    targets: NamePatterns | None
    also_train: NamePatterns | None
    backend: Backend
    rank: int
    axes: tuple[Axis, ...]
    basis: Basis = "standard"
    exclude: NamePatterns | None = None


class Obstacles:
    """Finds the reason why a matrix of a network is not sliced.

    Args:
        net: The network.
        heads: Its output heads.
        fully_trained: Parameters that are trained in full, by name.
        settings: What the user asked for.
        excluded: Names of the matrices that the user excludes.
    """

    def __init__(
        self,
        net: nn.Module,
        heads: Iterable[Head],
        fully_trained: Mapping[str, nn.Parameter],
        settings: TargetSettings,
        excluded: Collection[str],
    ) -> None:
        self._settings = settings
        self._excluded = excluded
        self._left_out = {
            TIED: tied_parameters(net),
            TRAINED_IN_FULL: {id(parameter) for parameter in fully_trained.values()},
            OUTPUT_HEAD: {id(parameter) for head in heads for parameter in head.module.parameters()},
            FROZEN: {id(parameter) for parameter in net.parameters() if not parameter.requires_grad},
        }

    def by_default(self, matrix: SliceableMatrix) -> str | None:
        """Why a matrix is not sliced by default; ``None`` if nothing prevents it."""
        if matrix.name in self._excluded:
            return EXCLUDED
        parameter = matrix.parameter
        if not can_be_trained(parameter):
            return untrainable_reason(parameter)
        if getattr(matrix.module, "max_norm", None) is not None:
            return "max_norm rescales the weight in the forward pass"
        if self._settings.backend == "compact" and issubclass(matrix.implementation, MaskedLayer):
            return f"no compact layer; these have one: {COMPACT_LAYERS}"
        if self._settings.basis != "standard" and (reason := no_directions(matrix)) is not None:
            return reason
        left_out = (reason for reason, parameters in self._left_out.items() if id(parameter) in parameters)
        return next(left_out, None) or self.too_narrow(matrix)

    def if_named(self, matrix: SliceableMatrix) -> str | None:
        """Why a matrix cannot be sliced even if the user names it. Output heads and frozen layers can be."""
        reason = self.by_default(matrix)
        return self.too_narrow(matrix) if reason in (OUTPUT_HEAD, FROZEN) else reason

    def too_narrow(self, matrix: SliceableMatrix) -> str | None:
        """The reason that a matrix has fewer lines than the rank; ``None`` if it has enough."""
        size, axis = self.num_lines(matrix)
        lines = f"{size} {axis}s are" if size > 1 else f"{size} {axis} is"
        return f"{lines} fewer than rank={self._settings.rank}" if size < self._settings.rank else None

    def num_lines(self, matrix: SliceableMatrix) -> tuple[int, Axis]:
        """The number of lines of a matrix, and their axis. If columns and rows alternate: of the axis with fewer."""
        sizes: dict[Axis, int] = {"row": matrix.shape[0], "column": matrix.shape[1]}
        return min((sizes[axis], axis) for axis in self._settings.axes)

    def possible_ranks(self, reasons: Mapping[SliceableMatrix, str | None]) -> list[int]:
        """The largest possible rank of each matrix whose reason is that it has fewer lines than the rank."""
        refused = ((matrix, reason) for matrix, reason in reasons.items() if reason is not None)
        return [self.num_lines(matrix)[0] for matrix, reason in refused if reason == self.too_narrow(matrix)]

    def is_trained_in_full(self, matrix: SliceableMatrix) -> bool:
        """Whether the parameter of a matrix is trained in full."""
        return id(matrix.parameter) in self._left_out[TRAINED_IN_FULL]


def no_directions(matrix: SliceableMatrix) -> str | None:
    """Why a slice of a matrix cannot lie along directions of the input; ``None`` if it can."""
    implementation = matrix.implementation
    sees_inputs = issubclass(implementation, SlicedLinear | SlicedConv | SlicedMultiheadAttention)
    if not sees_inputs or matrix.layout not in implementation.slicefine_layouts(matrix.module):
        return "directions need a linear map or convolution whose inputs are seen; basis='standard' slices its columns"
    return None
