"""Image networks with a fitting head, from timm, torchvision or transformers.

Answers: which network does a name mean, and is its head new?  The libraries are imported only when one is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from slicefine_pl.inputs import ImageInput, trained_input
from slicefine_pl.modules.weights import read_weights
from slicefine_pl.optional import optional_imports
from slicefine_pl.pretrained import parse_backbone, read_config


@dataclass(frozen=True)
class LoadedBackbone:
    """A network with its head.

    Attributes:
        model: Maps images to logits, shape ``(B, C)``, or to an output that has them as ``logits``.
        library: ``"timm"``, ``"torchvision"``, ``"transformers"``, or ``"own"`` for a module that was given.
        architecture: Its name in that library; empty where the model itself knows.
        head: The layers after the backbone.
        new_head: Whether the head is new, that is random.
        label_names: Of the classes, where the files tell them.
        seen: What it was trained with, where it is an export that says so.
    """

    model: nn.Module
    library: str
    architecture: str
    head: Sequence[nn.Module]
    new_head: bool
    label_names: list[str] | None = None
    seen: ImageInput | None = None


def load_backbone(backbone: str | nn.Module, num_classes: int | None) -> LoadedBackbone:
    """Build the network and put a head for ``num_classes`` on it, unless it has one.

    Args:
        backbone: A name as ``parse_backbone`` takes it apart, an exported folder, or a module.
        num_classes: Classes; ``None`` keeps the head as it is.

    Raises:
        ModuleNotFoundError: Its library is not installed.
        ValueError: The network or its weights cannot be loaded.
    """
    if isinstance(backbone, nn.Module):
        return _given(backbone, num_classes)
    kind, name, weights = parse_backbone(backbone)
    load = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}
    try:
        if kind not in load:
            raise ValueError("the folder holds a module of your own; build it, load model.safetensors, and give it")
        seen = trained_input(name, ImageInput) if weights == "default" else None
        with optional_imports("image"):
            return replace(load[kind](name, weights, num_classes), seen=seen)
    except (OSError, RuntimeError, ValueError, KeyError) as error:  # each library has its own way to refuse
        raise ValueError(
            f"backbone={backbone!r} could not be loaded ({' '.join(str(error).split())[:400]}); give timm/<name> or "
            "torchvision/<name>, with @<file of weights> or @random where needed, a hub name or folder of "
            "transformers, or an exported folder."
        ) from error


def _timm(name: str, weights: str, num_classes: int | None) -> LoadedBackbone:
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
    return LoadedBackbone(model, "timm", "", head, not same or weights == "random", _strings(names))


def _torchvision(name: str, weights: str, num_classes: int | None) -> LoadedBackbone:
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
    return LoadedBackbone(model, "torchvision", architecture, (head,), replaced or weights == "random", _strings(names))


def _transformers(name: str, weights: str, num_classes: int | None) -> LoadedBackbone:
    from transformers import AutoConfig, AutoModelForImageClassification

    config = AutoConfig.from_pretrained(name)
    if num_classes is not None:
        config.num_labels = num_classes
    if weights == "random":
        model, report = AutoModelForImageClassification.from_config(config), {}  # type: ignore[no-untyped-call]
    else:
        model, report = AutoModelForImageClassification.from_pretrained(
            name, config=config, output_loading_info=True, ignore_mismatched_sizes=True
        )
    new_head = weights == "random" or bool(report["missing_keys"] or report["mismatched_keys"])
    children = dict(model.named_children())
    head = [child for key, child in children.items() if key != model.base_model_prefix and _has_parameters(child)]
    names = None if new_head else list((model.config.id2label or {}).values())
    return LoadedBackbone(model.train(), "transformers", "", head, new_head, names)


def _given(model: nn.Module, num_classes: int | None) -> LoadedBackbone:
    head, replaced = _fit_last_linear(model, num_classes)
    return LoadedBackbone(model, "own", "", (head,), replaced)


def _fit_last_linear(model: nn.Module, num_classes: int | None) -> tuple[nn.Linear, bool]:
    """The last linear layer, and whether it had to be replaced to give ``num_classes`` outputs."""
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


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _strings(names: object) -> list[str] | None:
    return [str(name) for name in names] if isinstance(names, list) else None
