"""The base class of sliced layers.

Opening a slice swaps the dense layer's class in place. A sliced layer is the same object with the same parameters, now
frozen, and one child module, a :class:`Slice`, for each sliced matrix. Subclasses compute the output and the gradient
of the slice (``linear.py``, ``conv.py``, ``attention.py``, ``masked.py``).
"""

import inspect
from collections.abc import Iterator
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from slicefine_pl.slicing.distributed.shards import LocalShard
from slicefine_pl.slicing.layers.readers import reader
from slicefine_pl.slicing.layout import MatrixLayout
from slicefine_pl.slicing.slice import Slice, gather_lines

NoGradReason = Literal["checkpoint", "no_grad"]
"""Why a layer ran in train mode without recording gradients: reentrant checkpointing, or ``torch.no_grad``."""


class SlicedLayer(nn.Module):
    """Base class of sliced layers. All names start with ``slicefine`` to avoid clashes with the dense class.

    **State dict.** Contains the dense layer's keys only, with the trained values at their positions.
    **Reading.** ``layer.weight`` (or whichever parameter is sliced) returns the stored parameter while gradients are
    disabled. Otherwise it returns a tensor with the same values, whose gradient reaches the slice.

    Attributes:
        slicefine_writes_manually: Whether the training loop calls :meth:`slicefine_write` after each optimizer step.
            The stored parameters are then correct between steps, for validation, checkpoints and averages. A forward
            pass in train mode still writes if a slice was changed since, as some optimizers evaluate several times per
            step. A compiled forward pass never writes: that would copy the whole parameter and save it for backward.
        slicefine_no_grad_reason: Why a forward pass in train mode recorded no gradients; ``None`` if all of them did.
        slicefine_implementation: The subclass that computes, such as ``SlicedLinear``.
        slicefine_dense_class: The class that the layer had before it was opened.
        slicefine_parameters: Names of the sliced parameters.
    """

    slicefine_writes_manually: bool
    slicefine_no_grad_reason: NoGradReason | None = None
    slicefine_implementation: type["SlicedLayer"]
    slicefine_dense_class: type[nn.Module]
    slicefine_parameters: frozenset[str]

    @classmethod
    def slicefine_layouts(cls, dense: nn.Module) -> list[MatrixLayout]:
        """The matrices of a dense layer of which this class computes the gradient of the slice only."""
        return []

    def slicefine_slices(self) -> Iterator[Slice]:
        """The slices of this layer."""
        return (child for child in self._modules.values() if isinstance(child, Slice))

    def slicefine_slice(self, parameter: str, part: str = "") -> Slice | None:
        """The slice of a matrix; ``None`` if the matrix is not sliced."""
        return cast("Slice | None", self._modules.get(child_name(parameter, part)))

    def slicefine_shard(self, slice_: Slice) -> LocalShard:
        """The part that this process stores of a slice's matrix, as a view outside autograd."""
        # Outside autograd: a write must not count as a change of a tensor that an earlier forward pass saved for
        # backward, because it only repeats a change that the optimizer has already made.
        return LocalShard.of(slice_.layout, self.slicefine_stored(slice_.layout.parameter))

    def slicefine_stored(self, parameter: str) -> nn.Parameter:
        """The frozen parameter itself."""
        return cast("nn.Parameter", self._parameters[parameter])

    def slicefine_write(self) -> None:
        """Copy the trained values to their positions in the stored parameters."""
        for slice_ in self.slicefine_slices():
            [lines] = gather_lines([slice_])
            slice_.write(self.slicefine_shard(slice_), lines)

    def slicefine_merge(self) -> None:
        """Add to the stored parameters what the layer adds to its output instead, and write the rest."""
        for slice_ in self.slicefine_slices():
            [lines] = gather_lines([slice_])
            slice_.merge(self.slicefine_shard(slice_), lines)

    def slicefine_merged(self, parameter: str) -> Tensor:
        """A stored parameter with all that was trained: a copy if the layer adds a part of it to its output."""
        stored: Tensor = self.slicefine_stored(parameter)
        if parameter not in self.slicefine_added_to_output():
            return stored
        stored = stored.detach().clone()
        for slice_ in self.slicefine_slices():
            if slice_.layout.parameter == parameter:
                [lines] = gather_lines([slice_])
                LocalShard.of(slice_.layout, stored).add_product(lines, slice_.selection)
        return stored

    def slicefine_added_to_output(self) -> list[str]:
        """Names of the parameters that lack what the layer adds to its output, each once."""
        names = (slice_.layout.parameter for slice_ in self.slicefine_slices() if slice_.adds_to_output)
        return list(dict.fromkeys(names))  # in one order, in which all processes collect them

    def slicefine_is_sharded(self) -> bool:
        """Whether FSDP2 manages this layer. It replaces the layer's parameters before and after each use."""
        return getattr(self, "_is_fsdp_managed_module", False)

    def slicefine_before_forward(self) -> None:
        """Write the slices to the stored parameters, unless these are up to date."""
        eager_training = self.training and not torch.compiler.is_compiling()
        trained = eager_training and torch.is_grad_enabled()
        if eager_training and not trained and self.slicefine_no_grad_reason is None:
            self.slicefine_no_grad_reason = "checkpoint" if _in_reentrant_checkpoint() else "no_grad"
        if self.slicefine_writes_manually and not (trained and self._slicefine_may_be_unsynced()):
            return
        if not self.slicefine_writes_manually and self.slicefine_is_sharded():
            raise RuntimeError(
                "FSDP2 has sharded this layer and gathers its weight from the shards again in the backward pass, so the"
                " trained values must be in the shards. Call handle.write_manually() once, and handle.write() after"
                " every optimizer step."
            )
        self.slicefine_write()

    def _slicefine_may_be_unsynced(self) -> bool:
        return self.slicefine_is_sharded() or not all(slice_.in_sync for slice_ in self.slicefine_slices())

    def register_parameter(self, name: str, param: Tensor | None) -> None:
        pruned = name.removesuffix("_orig")
        if pruned != name and pruned in self.slicefine_parameters:
            raise RuntimeError(
                f"torch.nn.utils.prune cannot replace the {pruned} of a layer while its slices are open. Prune before"
                " the slices are opened, or use SparsityCallback, which prunes while they are trained."
            )
        super().register_parameter(name, param)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        slices = (slice_.extra_repr() for slice_ in self.slicefine_slices())
        return ", ".join(filter(None, [super().extra_repr(), *slices]))

    def train(self, mode: bool = True) -> Self:
        if not self.slicefine_writes_manually:
            self.slicefine_write()  # some fast paths of torch read the weight in eval mode without calling the layer
        return super().train(mode)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if not self.slicefine_writes_manually:
            self.slicefine_write()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for parameter in self.slicefine_added_to_output():
            destination[prefix + parameter] = self.slicefine_merged(parameter)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *others)
        for slice_ in self.slicefine_slices():
            if prefix + slice_.layout.parameter in state_dict:
                slice_.reload(self.slicefine_shard(slice_))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return (
            blank_instance,
            (self.slicefine_implementation, self.slicefine_dense_class, self.slicefine_parameters),
            self.__getstate__(),  # type: ignore[no-untyped-call]
        )


_SLICED_CLASSES: dict[tuple[type[SlicedLayer], type[nn.Module], frozenset[str]], type[SlicedLayer]] = {}


def sliced_class(
    implementation: type[SlicedLayer], dense_class: type[nn.Module], parameters: frozenset[str]
) -> type[SlicedLayer]:
    """The class of a sliced layer: a subclass of the implementation and of the dense class, so ``isinstance`` holds.

    Args:
        implementation: How the layer computes, such as ``SlicedLinear``.
        dense_class: Class of the dense layer, such as ``torch.nn.Linear``.
        parameters: Names of the sliced parameters; a property stands in front of each.
    """
    key = (implementation, dense_class, parameters)
    if key not in _SLICED_CLASSES:
        namespace = {
            "slicefine_implementation": implementation,
            "slicefine_dense_class": dense_class,
            "slicefine_parameters": parameters,
            "__module__": implementation.__module__,
            **{parameter: reader(parameter) for parameter in parameters},
        }
        _SLICED_CLASSES[key] = type(f"Sliced{dense_class.__name__}", (implementation, dense_class), namespace)
    return _SLICED_CLASSES[key]


def blank_instance(
    implementation: type[SlicedLayer], dense_class: type[nn.Module], parameters: frozenset[str]
) -> SlicedLayer:
    """An instance without state, for pickle and deepcopy: classes made at run time have no importable name."""
    cls = sliced_class(implementation, dense_class, parameters)
    return cls.__new__(cls)


def child_name(parameter: str, part: str) -> str:
    """Name of the child module that is the slice of a matrix."""
    return "slicefine" if parameter == "weight" else "_".join(filter(None, ["slicefine_in", parameter, part]))


def _in_reentrant_checkpoint() -> bool:
    """Whether the caller runs in the first pass of ``torch.utils.checkpoint.checkpoint(..., use_reentrant=True)``."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not CheckpointFunction.forward.__code__:
        frame = frame.f_back
    return frame is not None
