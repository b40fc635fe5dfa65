"""``fit --export lora``: a LoRA adapter in place of the whole trained model."""

import shlex
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule

from slicefine_pl.callbacks import SliceFineCallback
from slicefine_pl.pretrained import RANDOM
from slicefine_pl.slicing import LoraExport, export_lora

ExportKind = Literal["model", "lora"]


class NoAdapterError(ValueError):
    """There is no adapter: peft cannot express what was trained, or there is no slice file."""


def check_adapter(
    module: LightningModule, slices: SliceFineCallback | None, *, pruned: bool, sharded: bool, other_base: bool
) -> None:
    """Check, before training, that the result can be an adapter.

    Args:
        module: The module before training.
        slices: The callback that slices it, if there is one.
        pruned: Whether the run prunes.
        sharded: Whether weights are sharded.
        other_base: Whether training starts from what a slice file trained.

    Raises:
        ValueError: It cannot.
    """
    random_weights = getattr(module, "has_random_weights", False) or str(getattr(module, "backbone", "")).endswith(
        RANDOM
    )
    reasons = {
        f"{type(module).__name__} has no from_slices()": not hasattr(module, "from_slices"),
        "this run trains all weights": slices is None,
        "this run prunes, which changes all weights": pruned,
        "weights are sharded": sharded,
        "the base is that of --model.slices, which peft does not have": other_base,
        "the base has random weights, which nobody else has": random_weights,
    }
    if found := [reason for reason, applies in reasons.items() if applies]:
        raise ValueError(f"--export lora writes what slices train of a pretrained model, and {found[0]}; leave it out.")


def write_adapter(module: Any, slices: Path | None, out: Path) -> LoraExport:
    """Write a slice file as a LoRA adapter.

    Args:
        module: The module that was trained; the base is built again as it was built.
        slices: The slice file; ``None`` if it could not be written.
        out: Folder to write.

    Raises:
        NoAdapterError: peft cannot express what was trained, or there is no slice file.
    """
    if slices is None:
        raise NoAdapterError(
            "There is no slice file to make an adapter from; the warning above says why. The best checkpoint contains"
            " the trained model."
        )
    module_class = type(module)
    base = module_class(**module_class.settings_of_slices(slices)).model
    try:
        return export_lora(slices, base, out)
    except ValueError as error:
        command = shlex.join(("slicefine", "to-lora", str(slices), str(out), "--store-whole"))
        raise NoAdapterError(
            f"{error} The slice file contains what was trained; `{command}` stores modules whole that peft cannot"
            " express."
        ) from None


def adapter_example(module_class: type[LightningModule], slices: Path | None, folder: Path) -> str:
    """Return Python code that loads an adapter with peft, onto the base as the module builds it."""
    name = module_class.__name__
    return (
        "from peft import PeftModel\n"
        f"from {module_class.__module__} import {name}\n"
        f"base = {name}(**{name}.settings_of_slices({str(slices)!r})).model\n"
        f"model = PeftModel.from_pretrained(base, {str(folder)!r}).eval()"
    )
