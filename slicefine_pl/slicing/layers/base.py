"""A layer of which slices are live: the dense layer itself under another class.

A sliced layer is the same object with the same, now frozen, parameters, and one small child, a ``Slice``, for each
matrix that is sliced.  How it computes is left to its kind (``linear.py``, ``conv.py``, ``attention.py``); whoever
*reads* a sliced parameter instead of calling the layer gets a tensor whose gradient reaches the slice as well.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import CheckpointFunction

from slicefine_pl.slicing.distributed.shards import LocalShard, MatrixLayout, full_tensors, is_sharded
from slicefine_pl.slicing.slice import Slice, line_norms, slice_gradient

NoGradReason = Literal["checkpoint", "no_grad"]


class SlicedLayer(nn.Module):
    """What every kind of sliced layer shares.

    Its names begin with ``slicefine``, so that they hide none of the dense class.

    **State dict.** Holds the dense layer's keys only, with the live values in their places.
    **Reading.** ``layer.weight``, or whichever parameter is sliced, is the stored parameter where no gradient is
    recorded, and else a tensor with its values that passes the live lines' part of its gradient on to the slice.

    Attributes:
        slicefine_writes_manually: Whether somebody calls :meth:`slicefine_write` after each optimizer step, so that the
            stored values are right when no gradient is recorded (validation, checkpoints, averages).  A forward pass
            that records gradients in train mode writes only if a slice has changed since (some optimizers evaluate
            several times a step), and not at all where it is compiled: there a write would copy the whole parameter,
            and keep the copy for the backward pass.
        slicefine_no_grad_reason: Why a forward pass in train mode recorded no gradients: it ran within reentrant
            checkpointing, which records when it runs again, or just without; ``None`` if there was none.
    """

    slicefine_writes_manually: bool
    slicefine_no_grad_reason: NoGradReason | None = None
    slicefine_implementation: type["SlicedLayer"]
    slicefine_dense_class: type[nn.Module]
    slicefine_parameters: frozenset[str]

    @classmethod
    def slicefine_layouts(cls, dense: nn.Module) -> list[MatrixLayout]:
        """The matrices of a dense layer whose slices this kind computes without the full gradient."""
        return []

    def slicefine_slices(self) -> Iterator[Slice]:
        """The slices of this layer."""
        return (child for child in self._modules.values() if isinstance(child, Slice))

    def slicefine_slice(self, parameter: str, part: str = "") -> Slice | None:
        """The slice of a block; ``None`` if this block is not sliced."""
        return cast("Slice | None", self._modules.get(_child_name(parameter, part)))

    def slicefine_shard(self, slice_: Slice) -> LocalShard:
        """What this process holds of a slice's block, as a view outside autograd."""
        # Outside, because a write must not count as a change of a tensor that an earlier forward pass saved for
        # backward: it only repeats what the optimizer has already decided.
        return slice_.layout.local_shard(self.slicefine_stored(slice_.layout.parameter))

    def slicefine_stored(self, parameter: str) -> nn.Parameter:
        """The frozen parameter itself."""
        return cast("nn.Parameter", self._parameters[parameter])

    def slicefine_write(self) -> None:
        """Copy the live values to their places in the stored parameters."""
        for slice_, [trainable] in ((slice_, full_tensors([slice_.trainable])) for slice_ in self.slicefine_slices()):
            slice_.write(self.slicefine_shard(slice_), trainable)

    def slicefine_is_sharded(self) -> bool:
        """Whether FSDP2 has this layer in its care: its parameters are then other tensors from time to time."""
        return getattr(self, "_is_fsdp_managed_module", False)

    def slicefine_before_forward(self) -> None:
        """Bring the stored values up to date, unless they are known to be."""
        eager_training = self.training and not torch.compiler.is_compiling()
        trained = eager_training and torch.is_grad_enabled()
        if eager_training and not trained and self.slicefine_no_grad_reason is None:
            self.slicefine_no_grad_reason = "checkpoint" if _in_reentrant_checkpoint() else "no_grad"
        if self.slicefine_writes_manually and not (trained and self._slicefine_changed()):
            return
        if not self.slicefine_writes_manually and self.slicefine_is_sharded():
            raise RuntimeError(
                "This layer was sharded by FSDP2, whose backward pass takes the weight anew from its shards: what"
                " a slice has learned must stand in them. Call handle.write_manually() once, and handle.write() after"
                " every optimizer step."
            )
        self.slicefine_write()

    def _slicefine_changed(self) -> bool:
        return self.slicefine_is_sharded() or not all(slice_.in_sync for slice_ in self.slicefine_slices())

    def register_parameter(self, name: str, param: Tensor | None) -> None:
        pruned = name.removesuffix("_orig")
        if pruned != name and pruned in self.slicefine_parameters:
            raise RuntimeError(
                f"torch.nn.utils.prune cannot replace the {pruned} of a layer while its slices are open. Prune before"
                " they are opened, or with SparsityCallback, which prunes while they are trained."
            )
        super().register_parameter(name, param)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        told = (slice_.extra_repr() for slice_ in self.slicefine_slices())
        return ", ".join(filter(None, [super().extra_repr(), *told]))

    def train(self, mode: bool = True) -> Self:
        if not self.slicefine_writes_manually:
            self.slicefine_write()  # some fast paths of torch read the weight in eval mode without calling the layer
        return super().train(mode)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if not self.slicefine_writes_manually:
            self.slicefine_write()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *others)
        for slice_ in self.slicefine_slices():
            if prefix + slice_.layout.parameter in state_dict:
                slice_.reload(self.slicefine_shard(slice_))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return (
            _blank,
            (self.slicefine_implementation, self.slicefine_dense_class, self.slicefine_parameters),
            self.__getstate__(),  # type: ignore[no-untyped-call]
        )


class _Read(torch.autograd.Function):
    """The stored parameter's values; the gradient goes on to the live lines."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, trainable: Tensor, slice_: Slice) -> Tensor:
        ctx.slice_ = slice_
        ctx.save_for_backward(trainable)  # so that torch notices if the slice changes before backward
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        slice_: Slice = ctx.slice_
        (trainable,) = ctx.saved_tensors
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        block = slice_.layout.view(dense)
        if not torch.compiler.is_compiling():
            slice_.read_directly = True
        if slice_.score is not None:
            slice_.score += line_norms(block, slice_.score_axis)
        return (
            (gradient if ctx.needs_input_grad[0] else None),
            slice_gradient(slice_.select_lines(block), trainable),
            None,
        )


def _reader(parameter: str) -> property:
    """What stands in the class of a sliced layer for a sliced parameter, in front of the parameter itself."""

    def read(self: SlicedLayer) -> Tensor:
        if is_sharded(self._parameters[parameter]):
            return self.slicefine_stored(parameter)  # read by FSDP2 itself; a network computes with whole weights
        self.slicefine_before_forward()
        values: Tensor = self.slicefine_stored(parameter)
        if not torch.is_grad_enabled():
            return values
        for slice_ in self.slicefine_slices():
            if slice_.layout.parameter == parameter:
                values = _Read.apply(values, slice_.trainable, slice_)
        return values

    return property(read)


_SLICED_CLASSES: dict[tuple[type[SlicedLayer], type[nn.Module], frozenset[str]], type[SlicedLayer]] = {}


def _sliced_class(
    implementation: type[SlicedLayer], dense_class: type[nn.Module], parameters: frozenset[str]
) -> type[SlicedLayer]:
    """The class of a sliced ``dense_class``; also an instance of the dense class, for code that asks."""
    key = (implementation, dense_class, parameters)
    if key not in _SLICED_CLASSES:
        namespace = {
            "slicefine_implementation": implementation,
            "slicefine_dense_class": dense_class,
            "slicefine_parameters": parameters,
        }
        readers = {parameter: _reader(parameter) for parameter in parameters}
        bases = (implementation, dense_class)
        _SLICED_CLASSES[key] = type(
            f"Sliced{dense_class.__name__}", bases, {**namespace, **readers, "__module__": implementation.__module__}
        )
    return _SLICED_CLASSES[key]


def _blank(implementation: type[SlicedLayer], dense_class: type[nn.Module], parameters: frozenset[str]) -> SlicedLayer:
    """An instance without state, for pickle and deepcopy: classes made at run time have no importable name."""
    sliced_class = _sliced_class(implementation, dense_class, parameters)
    return sliced_class.__new__(sliced_class)


def open_layer(module: nn.Module, implementation: type[SlicedLayer], layouts: Sequence[MatrixLayout]) -> SlicedLayer:
    """Turn a dense layer, in place, into a sliced one whose slices are still to be added.

    Args:
        module: The dense layer; the parameters of the blocks are frozen.
        implementation: How this layer computes, such as ``SlicedLinear``.
        layouts: What will be sliced.

    Returns:
        The same object, now a ``SlicedLayer``.
    """
    parameters = frozenset(layout.parameter for layout in layouts)
    for parameter in parameters:
        module.get_parameter(parameter).requires_grad_(False)
    module.__class__ = _sliced_class(implementation, type(module), parameters)
    assert isinstance(module, SlicedLayer)  # what the line above says; for the type checker
    module.slicefine_writes_manually = False
    return module


def add_slice(layer: SlicedLayer, layout: MatrixLayout, rank: int, length: int, dtype: torch.dtype | None) -> Slice:
    """Give an opened layer the slice of one of its blocks; it still has to be placed.

    Args:
        layer: The layer.
        layout: Where the slice lies.
        rank: Number of live lines (R).
        length: Numbers per line of ``live`` (L).
        dtype: Of the live lines; ``None`` takes the parameter's.
    """
    slice_ = Slice(layout, rank, length, layer.slicefine_stored(layout.parameter), dtype)
    layer.add_module(_child_name(layout.parameter, layout.part), slice_)
    return slice_


def close_layer(layer: SlicedLayer) -> None:
    """Turn a sliced layer, in place, back into the dense layer it was; what its slices learned stays."""
    if not layer.slicefine_writes_manually:
        layer.slicefine_write()
    for name in [name for name, child in layer._modules.items() if isinstance(child, Slice)]:
        del layer._modules[name]
    del layer.slicefine_writes_manually
    layer.__dict__.pop("slicefine_no_grad_reason", None)
    layer.__class__ = cast("type[SlicedLayer]", layer.slicefine_dense_class)


@contextmanager
def as_dense(net: nn.Module) -> Iterator[None]:
    """Inside, the open layers of ``net`` compute as the dense layers they were, from their stored parameters.

    For whoever wants the gradient of a whole weight; nothing is copied.  The slices must not be trained meanwhile.
    """
    opened = [(module, module.__class__) for module in net.modules() if isinstance(module, SlicedLayer)]
    for layer, _ in opened:
        if not layer.slicefine_writes_manually:
            layer.slicefine_write()
        layer.__class__ = cast("type[SlicedLayer]", layer.slicefine_dense_class)
    try:
        yield
    finally:
        for layer, sliced_class in opened:
            layer.__class__ = sliced_class


def _in_reentrant_checkpoint() -> bool:
    """Whether the caller runs in the first pass of ``torch.utils.checkpoint.checkpoint(..., use_reentrant=True)``."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not CheckpointFunction.forward.__code__:
        frame = frame.f_back
    return frame is not None


def _child_name(parameter: str, part: str) -> str:
    return "slicefine" if parameter == "weight" else "_".join(filter(None, ["slicefine_in", parameter, part]))
