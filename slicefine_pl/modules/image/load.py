"""Load image networks from timm, torchvision or transformers, with a head for the classes.

A library is imported only when one of its networks is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from slicefine_pl.inputs import ImageInput, stored_input
from slicefine_pl.modules.weights import read_weights
from slicefine_pl.network.heads import has_parameters
from slicefine_pl.optional import optional_imports
from slicefine_pl.pretrained import parse_backbone, read_config


@dataclass(frozen=True)
class ImageBackbone:
    """A network with its head.

    Attributes:
        model: Network that maps images to logits, shape ``(B, C)``, or to an output with the attribute ``logits``.
        library: ``"timm"``, ``"torchvision"``, ``"transformers"``, or ``"own"`` for a module that was given.
        architecture: Name of the network in torchvision; empty for other libraries, whose models contain it.
        head: The layers after the backbone.
        new_head: Whether the head is new and random.
        label_names: Names of the classes, if the files contain them.
        trained_input: The record of an exported backbone, if it contains one.
    """

    model: nn.Module
    library: str
    architecture: str
    head: Sequence[nn.Module]
    new_head: bool
    label_names: list[str] | None = None
    trained_input: ImageInput | None = None


def load_backbone(backbone: str | nn.Module, num_classes: int | None) -> ImageBackbone:
    """Load a network, and replace its head if it does not fit ``num_classes``.

    Args:
        backbone: Name as in :func:`~slicefine_pl.pretrained.parse_backbone`, exported folder, or module.
        num_classes: Number of classes; ``None`` keeps the head.

    Raises:
        ModuleNotFoundError: The library is not installed.
        ValueError: The network or its weights cannot be loaded.
    """
    if isinstance(backbone, nn.Module):
        return _from_module(backbone, num_classes)
    kind, name, weights = parse_backbone(backbone)
    load = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}
    try:
        if kind not in load:
            raise ValueError("the folder contains a module of your own; build it, load model.safetensors, and give it")
        trained = stored_input(name, ImageInput) if weights == "default" else None
        with optional_imports("image"):
            return replace(load[kind](name, weights, num_classes), trained_input=trained)
    except (OSError, RuntimeError, ValueError, KeyError) as error:  # each library has its own errors
        raise ValueError(
            f"backbone={backbone!r} could not be loaded ({' '.join(str(error).split())[:400]}); give timm/<name> or "
            "torchvision/<name>, with @<file of weights> or @random where needed, a hub name or folder of "
            "transformers, or an exported folder."
        ) from error


def _timm(name: str, weights: str, num_classes: int | None) -> ImageBackbone:
    import timm

    settings = read_config(name)
    model: Any = timm.create_model(f"local-dir:{name}" if settings else name, pretrained=weights == "default")
    if weights not in ("default", "random"):
        read_weights(weights, model)
    same = num_classes in (None, model.num_classes)
    if not same:
        model.reset_classifier(num_classes)
    heads = model.get_classifier()
    names = settings.get("label_names") if same else None
    head = heads if isinstance(heads, tuple) else (heads,)
    return ImageBackbone(model, "timm", "", head, not same or weights == "random", _strings(names))


def _torchvision(name: str, weights: str, num_classes: int | None) -> ImageBackbone:
    from torchvision.models import get_model

    settings: Any = read_config(name)
    if settings:
        architecture = settings["architecture"]
        model = get_model(architecture, weights=None, num_classes=settings["num_classes"])
        read_weights(str(Path(name) / "model.safetensors"), model)
    else:
        architecture = name
        model = get_model(name, weights="DEFAULT" if weights == "default" else None)
        if weights not in ("default", "random"):
            read_weights(weights, model)
    head, replaced = _fit_last_linear(model, num_classes)
    names = None if replaced else settings.get("label_names")
    return ImageBackbone(model, "torchvision", architecture, (head,), replaced or weights == "random", _strings(names))


def _transformers(name: str, weights: str, num_classes: int | None) -> ImageBackbone:
    from transformers import AutoModelForImageClassification

    from slicefine_pl.modules.auto_model import load_auto_model, load_config

    config = load_config(name)
    if num_classes is not None:
        config.num_labels = num_classes
    model, new_head, _ = load_auto_model(
        AutoModelForImageClassification, name, config, random_weights=weights == "random"
    )
    children = dict(model.named_children())
    head = [child for key, child in children.items() if key != model.base_model_prefix and has_parameters(child)]
    names = None if new_head else list((model.config.id2label or {}).values())
    return ImageBackbone(model, "transformers", "", head, new_head, names)


def _from_module(model: nn.Module, num_classes: int | None) -> ImageBackbone:
    head, replaced = _fit_last_linear(model, num_classes)
    return ImageBackbone(model, "own", "", (head,), replaced)


def _fit_last_linear(model: nn.Module, num_classes: int | None) -> tuple[nn.Linear, bool]:
    """Return the last linear layer, and whether it was replaced to have ``num_classes`` outputs."""
    linears = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not linears:
        raise ValueError(f"{type(model).__name__} has no nn.Linear to take as its head; give a model that ends in one.")
    name, head = linears[-1]
    if num_classes in (None, head.out_features):
        return head, False
    assert num_classes is not None
    parent, _, own = name.rpartition(".")
    new = nn.Linear(head.in_features, num_classes, bias=head.bias is not None)
    setattr(model.get_submodule(parent), own, new)
    return new, True


def _strings(names: object) -> list[str] | None:
    return [str(name) for name in names] if isinstance(names, list) else None
