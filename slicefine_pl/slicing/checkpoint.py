"""Checkpoints that contain what slices trained, and not the frozen base.

Such a checkpoint has the entry ``slicefine_slices``, with the content and the tensors of a :class:`SliceFile`. Its
``state_dict`` cannot be loaded, with ``strict=False`` neither, until :func:`complete_checkpoint` has completed it.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from slicefine_pl.slicing.applied import put_in
from slicefine_pl.slicing.base_lines import BaseLines
from slicefine_pl.slicing.distributed.shards import full_tensor, reshard
from slicefine_pl.slicing.named_tensors import plain_name, stored_tensors
from slicefine_pl.slicing.slice_file import SliceFile

KEY = "slicefine_slices"
HINT = (  # a key of the state dict, so that torch's error message for unexpected keys contains it
    "This checkpoint contains slices only. Build the module with its pretrained weights, and call"
    " slicefine_pl.complete_checkpoint(checkpoint, module) before its weights are loaded, as in the module's"
    " on_load_checkpoint."
)


def shrink_checkpoint(checkpoint: dict[str, Any], net: nn.Module, file: SliceFile) -> None:
    """Replace the weights in a checkpoint by what was trained.

    Args:
        checkpoint: A checkpoint with the entry ``"state_dict"``, which is replaced.
        net: The network whose state it contains.
        file: What was trained.
    """
    content, tensors = file.pack()
    weights = checkpoint["state_dict"]
    in_file = _names_in(file, net)
    rest = {name: value for name, value in weights.items() if name not in in_file}  # such as extra state
    first = [name for name in in_file if name in weights and weights[name].dim()][:1]
    # A wrong shape is an error, even with strict=False.
    checkpoint["state_dict"] = {name: torch.empty(0) for name in (HINT, *first)} | rest
    checkpoint[KEY] = {"content": content, "tensors": tensors}


def complete_checkpoint(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Complete the weights of a checkpoint that contains slices only, from the module, which is not changed.

    The checkpoint's ``state_dict`` is then that of the whole trained model, bit for bit. Other checkpoints stay as they
    are. Where FSDP2 shards weights, every process calls this.

    ``SliceFineCallback``, ``FullyShardedStrategy`` and the modules of this package do it automatically. A module of
    your own calls it in ``on_load_checkpoint``, for ``load_from_checkpoint`` and for trainers without the callback.

    Args:
        checkpoint: What ``torch.load`` returned; changed in place.
        module: The module with the weights from which training started; or, after a fit, the module that was trained.

    Raises:
        ValueError: The module has other weights, types or shapes; the message names the first that differs. Nothing is
            changed then.

    Example:
        >>> from lightning.pytorch import LightningModule
        >>> class Module(LightningModule):
        ...     def on_load_checkpoint(self, checkpoint):
        ...         complete_checkpoint(checkpoint, self)
    """
    if KEY not in checkpoint:
        return
    file = SliceFile.unpack(checkpoint[KEY]["content"], checkpoint[KEY]["tensors"])
    tensors = _whole_tensors(module)
    known = BaseLines.of(module)
    base = _in_types_of(file, tensors if known is None else known.restored(tensors))
    try:
        file.check_base(base)
    except ValueError as error:
        raise ValueError(
            f"The checkpoint contains slices only, and this module has another base: {error}{_types(base, tensors)}"
            " Build the module anew with the weights from which training started. Weights that its constructor draws at"
            " random must be drawn with the same seed, or trained whole (also_train)."
        ) from None
    if known is not None:
        known.add(replace(each, values=each.read(base[each.parameter]).cpu()) for each in file.lines)
    changed = {*file.whole, *(each.parameter for each in file.matrices)}
    trained = {name: tensor.clone() if name in changed else tensor for name, tensor in base.items()}
    put_in(trained, file)
    names = _names_in(file, module)
    weights = {name: value for name, value in checkpoint["state_dict"].items() if name not in (HINT, *names)}
    weights |= {name: trained[first] for name, first in names.items()}
    order = dict.fromkeys([*module.state_dict(), *weights])
    checkpoint["state_dict"] = {name: weights[name] for name in order if name in weights}
    del checkpoint[KEY]


def _first_names(module: nn.Module) -> dict[str, str]:
    """For each name of a tensor its first one: tied parameters have several."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in stored_tensors(module).items()}


def _whole_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module, each by its first name. A collective where they are sharded."""
    reshard(module)
    tensors = stored_tensors(module)
    return {name: full_tensor(tensors[name]) for name, first in _first_names(module).items() if name == first}


def _names_in(file: SliceFile, module: nn.Module) -> dict[str, str]:
    """The names in a module's state dict of what a file determines, and the first name of each tensor."""
    determined = {*file.whole, *file.base_tensors().values(), *(each.parameter for each in file.matrices)}
    first = _first_names(module)
    found = ((name, first.get(plain_name(name), "")) for name in module.state_dict())
    return {name: tensor for name, tensor in found if tensor in determined}


def _in_types_of(file: SliceFile, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert tensors to the types that they had in training, as the trainer's precision does."""
    stored = file.base_tensors()
    types = {stored[name]: getattr(torch, each.dtype, None) for name, each in file.base.items()}
    types |= {name: values.dtype for name, values in file.whole.items()}
    known = {name: each for name, each in types.items() if isinstance(each, torch.dtype)}
    return {
        name: tensor.to(known.get(name, tensor.dtype)) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def _types(converted: dict[str, Tensor], tensors: dict[str, Tensor]) -> str:
    """Which types differ from those in training, as a sentence for a message."""
    for name, tensor in tensors.items():
        if converted[name].dtype != tensor.dtype:
            here, there = (str(each.dtype).removeprefix("torch.") for each in (tensor, converted[name]))
            return f" The module is in {here} here, and was in {there} in training."
    return ""
