"""Number of parameters of a model, as scaling laws count them.

Models are built on the meta device from their config, without reading weights.
"""

import torch
from torch import nn

from slicefine_pl.optional import optional_imports
from slicefine_pl.pretrained import parse_backbone, read_config, split_gguf
from slicefine_pl.sparsity.targets import POSITIONS


def count_parameters(model: str) -> float:
    """Count the parameters of a model without its embeddings, and without its head if the library can leave it out.

    Args:
        model: Hub name, folder, ``"timm/<name>"``, ``"torchvision/<name>"`` or ``"package:<package>/<path>"``; see
            ``slicefine_pl.pretrained``.

    Raises:
        ModuleNotFoundError: The library of the model is not installed.
        ValueError: The config of the model cannot be read.
    """
    try:
        with torch.device("meta"), optional_imports():
            network = _network(model)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(
            f"model={model!r} cannot be counted ({first}); give a folder with config.json, a name, or --parameters."
        ) from error
    return float(sum(parameter.numel() for parameter in without_embeddings(network).values()))


def without_embeddings(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters by name, except token and position embeddings."""
    tables = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    return {
        name: parameter
        for name, parameter in network.named_parameters()
        if id(parameter) not in tables and not POSITIONS.search(name)
    }


def _network(model: str) -> nn.Module:
    backbone = parse_backbone(model)
    if backbone.library == "timm":
        import timm

        name = read_config(backbone.name).get("architecture", backbone.name)
        return timm.create_model(str(name), pretrained=False, num_classes=0)
    if backbone.library == "torchvision":
        from torchvision.models import get_model

        return get_model(backbone.name, weights=None)  # type: ignore[no-any-return]
    from transformers import AutoConfig, AutoModel

    folder, gguf = split_gguf(backbone.name)
    settings = AutoConfig.from_pretrained(folder, gguf_file=gguf) if gguf else AutoConfig.from_pretrained(folder)
    return AutoModel.from_config(settings)  # type: ignore[no-any-return, no-untyped-call]
