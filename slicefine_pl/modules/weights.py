"""Read a file of weights into a network.

Answers: which tensor of the file belongs to which name of the network?  Names must agree, but for one known foreign
layout: EfficientNet-Lite as the Python package ``efficientnet-lite-pytorch`` names it.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

FOREIGN = "_conv_stem.weight"  # the first name of efficientnet-lite-pytorch


def read_weights(path: str, model: nn.Module) -> None:
    """Copy the weights of a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file into ``model``.

    Args:
        path: The file: a mapping from names to tensors, by itself or below ``"state_dict"``.
        model: Takes them; its names and shapes must be those of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds something else, or weights of another network.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights={path!r} is no file; give a .safetensors, .pth, .pt or .bin file.")
    if path.endswith(".safetensors"):
        found: object = load_file(path)
    else:
        found = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"weights={path!r} is no mapping from names to tensors; save model.state_dict().")
    model.load_state_dict(_efficientnet_lite(found, model) if FOREIGN in found else dict(found))


def _efficientnet_lite(found: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename: both networks list the same layers in the order in which an image passes them."""
    names = model.state_dict()
    if [value.shape for value in names.values()] != [value.shape for value in found.values()]:
        raise ValueError("the file holds an EfficientNet-Lite; give timm/tf_efficientnet_lite0 (to 4) as backbone")
    return dict(zip(names, found.values(), strict=True))
