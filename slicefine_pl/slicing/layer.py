"""A layer of which one slice is live: its state, and how it moves.

A sliced layer is the dense layer itself under another class: the same object, the same frozen ``weight``, and one small
parameter more, ``live``.  How the layer computes is left to its kind (``linear.py``).  Knows nothing of Lightning.

Shapes:  O outputs · I inputs · R rank of the slice · a *line* is a column (O numbers) or a row (I numbers)
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from slicefine_pl.slicing.positions import Line


class SlicedLayer(nn.Module):
    r"""What every kind of sliced layer shares.

    ``live`` holds the live lines one below the other, shape ``(R, L)``, whatever the axis: the gradient's matrix
    product is then several times faster on CPU than in the transposed layout.  ``L`` is the length of a line; where
    rows and columns alternate it is the longer of the two, and the tail of a shorter line is padding.

    **State dict.** Holds the dense layer's keys only, with the live values in their place in ``weight``.

    Attributes:
        live: The trainable lines, shape ``(R, L)``.
        index: Which lines of the axis are live, shape ``(R,)``, int64.
        line: Whether ``index`` counts columns or rows.
        trusts_weight: Whether somebody calls :meth:`write` after each optimizer step, so that ``weight`` is right when
            no gradient is recorded (validation, checkpoints, averages).  A forward pass that records gradients writes
            in any case.
        score: Importance of every line that could be live next, shape ``(size,)``, float32; ``None`` unless asked for.
        score_line: Whether ``score`` ranks columns or rows.
    """

    weight: nn.Parameter
    live: nn.Parameter
    index: Tensor
    line: Line
    trusts_weight: bool
    score: Tensor | None
    score_line: Line
    kind: type["SlicedLayer"]
    dense_class: type[nn.Module]

    @abstractmethod
    def matrix(self) -> Tensor:
        """The stored weight, shape ``(O, I, ...)``, as a view."""

    def size(self, line: Line) -> int:
        """How many columns or rows the weight has."""
        return self.matrix().shape[1 if line == "column" else 0]

    def lines(self) -> Tensor:
        """The stored weight as a view of shape ``(size, length)``, one line after the other, outside autograd."""
        # .data, because a write must not count as a change of a tensor that an earlier forward pass saved for backward:
        # it only repeats what the optimizer has already decided.
        matrix = self.matrix().data
        return matrix.transpose(0, 1) if self.line == "column" else matrix

    @torch.no_grad()
    def write(self) -> None:
        """Copy the live values to their place in the stored weight: R lines, no allocation of the weight's size."""
        lines = self.lines()
        lines.index_copy_(0, self.index, self.live[:, : lines.shape[1]].to(lines.dtype))

    @torch.no_grad()
    def gather(self) -> None:
        """Copy the stored weight's values at ``index`` into ``live``."""
        lines = self.lines()
        self.live[:, : lines.shape[1]] = lines.index_select(0, self.index).to(self.live.dtype)
        self.live[:, lines.shape[1] :] = 0  # padding

    def place(self, line: Line, indices: Sequence[int]) -> None:
        """Leave the live lines where they stand, with what they learned, and make other lines live."""
        self.line = line
        self.index.copy_(torch.tensor(indices))
        self.gather()

    def listen(self, line: Line) -> None:
        """Start to collect the importance of every column or row, from nothing."""
        self.score_line = line
        self.score = torch.zeros(self.size(line), device=self.weight.device)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, live={self.live.shape[0]} {self.line}s"

    def train(self, mode: bool = True) -> Self:
        if not self.trusts_weight:
            self.write()  # some fast paths of torch read the weight of a layer in eval mode without calling the layer
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        weight_dtype, live = self.weight.dtype, self.live.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if live.dtype != weight_dtype:  # kept apart on purpose: a cast of the model leaves the slice's precision alone
            self.live.data = live.to(self.live.device)
        self.index = fn(self.index)
        self.score = None if self.score is None else self.score.to(self.index.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if not self.trusts_weight:
            self.write()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[prefix + "live"]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        missing: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs)
        missing_keys.extend(key for key in missing if key != prefix + "live")
        if prefix + "weight" in state_dict:
            self.gather()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (self.kind, self.dense_class), self.__dict__.copy()


_SLICED_CLASSES: dict[tuple[type[SlicedLayer], type[nn.Module]], type[SlicedLayer]] = {}


def _sliced_class(kind: type[SlicedLayer], dense_class: type[nn.Module]) -> type[SlicedLayer]:
    """The class of a sliced ``dense_class``; also an instance of the dense class, for code that asks."""
    key = (kind, dense_class)
    if key not in _SLICED_CLASSES:
        namespace = {"kind": kind, "dense_class": dense_class, "__module__": kind.__module__}
        _SLICED_CLASSES[key] = type(f"Sliced{dense_class.__name__}", key, namespace)
    return _SLICED_CLASSES[key]


def _blank(kind: type[SlicedLayer], dense_class: type[nn.Module]) -> SlicedLayer:
    """An instance without state, for pickle and deepcopy: classes made at run time have no importable name."""
    sliced_class = _sliced_class(kind, dense_class)
    return sliced_class.__new__(sliced_class)


def open_slice(
    module: nn.Module,
    kind: type[SlicedLayer],
    line: Line,
    indices: Sequence[int],
    length: int,
    dtype: torch.dtype | None,
) -> SlicedLayer:
    """Turn a dense layer, in place, into a sliced one.

    Args:
        module: The dense layer; its weight is frozen.
        kind: How this layer computes, such as ``SlicedLinear``.
        line: Which kind of line is live first.
        indices: The first live lines, ``R`` of them.
        length: Numbers per line of ``live`` (L).
        dtype: Of the live lines; ``None`` takes the weight's.

    Returns:
        The same object, now a ``SlicedLayer``.
    """
    weight = module.get_parameter("weight").requires_grad_(False)
    module.__class__ = _sliced_class(kind, type(module))
    assert isinstance(module, SlicedLayer)  # what the line above says; for the type checker
    module.register_parameter("live", nn.Parameter(weight.new_zeros(len(indices), length, dtype=dtype)))
    module.index = torch.zeros(len(indices), dtype=torch.int64, device=weight.device)
    module.trusts_weight = False
    module.score = None
    module.score_line = line
    module.place(line, indices)
    return module


def close_slice(layer: SlicedLayer) -> None:
    """Turn a sliced layer, in place, back into the dense layer it was; what its slices learned stays in the weight."""
    if not layer.trusts_weight:
        layer.write()
    for name in ("live", "index", "line", "trusts_weight", "score", "score_line"):
        delattr(layer, name)
    layer.__class__ = cast("type[SlicedLayer]", layer.dense_class)
