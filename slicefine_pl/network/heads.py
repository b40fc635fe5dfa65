"""Find the output head of a network.

Uses the conventions of transformers, timm, torchvision and pytorchvideo, without importing any of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Head:
    """An output head.

    Attributes:
        name: Name of the module within the network that was searched.
        module: The head itself.
        pretrained: Whether it was trained with the backbone, as the head of a language model, rather than being new.
    """

    name: str
    module: nn.Module
    pretrained: bool


def find_heads(net: nn.Module) -> list[Head]:
    """Find the output heads of all models of known libraries inside ``net``.

    A classifier's head counts as new, because its origin cannot be seen. A language model's head counts as pretrained.
    """
    heads = {id(head): (head, pretrained) for model in net.modules() for head, pretrained in _heads_of(model)}
    names = ((name, heads.get(id(module))) for name, module in net.named_modules())
    return [Head(name, *found) for name, found in names if found is not None]


def last_linear(net: nn.Module) -> nn.Linear | None:
    """The last linear layer of the last head of ``net``; of ``net`` itself if no head is found."""
    part = next((head.module for head in reversed(find_heads(net))), net)
    return next((layer for layer in reversed(list(part.modules())) if isinstance(layer, nn.Linear)), None)


def _heads_of(model: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """The heads of one model, each with whether it is pretrained. Modules that are not whole models have none."""
    origins = {(base.__module__.split(".")[0], base.__name__) for base in type(model).__mro__}
    if ("transformers", "PreTrainedModel") in origins:
        yield from _transformers_heads(model)
    elif hasattr(model, "pretrained_cfg") and hasattr(model, "get_classifier"):  # timm
        classifiers = model.get_classifier()  # type: ignore[operator]
        for head in classifiers if isinstance(classifiers, tuple) else (classifiers,):
            if has_parameters(head):
                yield head, False
    elif type(model).__module__.startswith("torchvision.models"):
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        if linears and _is_classifier(model):
            yield linears[-1], False
    elif type(model).__module__ == "pytorchvideo.models.head" and has_parameters(getattr(model, "proj", None)):
        yield model.get_submodule("proj"), False


def _transformers_heads(model: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    base = getattr(model, "base_model", model)
    children = dict(model.named_children())
    language_head = model.get_output_embeddings()  # type: ignore[operator]
    if base is model:  # a bare backbone, or a class whose backbone has another name
        candidates = [child for name, child in children.items() if name == "classifier" or child is language_head]
    else:
        candidates = [child for child in children.values() if child is not base]
    language_model = language_head is not None
    for head in candidates:
        if has_parameters(head):
            yield head, language_model


def _is_classifier(model: nn.Module) -> bool:
    """Whether a torchvision module is a whole model. Blocks come from the same files, but have no named head."""
    return any(hasattr(model, name) for name in ("fc", "classifier", "head", "heads"))


def has_parameters(module: object) -> bool:
    """Whether an object is a module with at least one parameter."""
    return isinstance(module, nn.Module) and next(module.parameters(), None) is not None
