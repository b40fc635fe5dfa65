"""Files of weights: what is in them, and which tensor belongs to which name of a network.

Names must agree, but for one known foreign layout: EfficientNet-Lite as the Python package
``efficientnet-lite-pytorch`` names it.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from slicefine_pl.files.safe_load import load_plain

FOREIGN = "_conv_stem.weight"  # the first name of efficientnet-lite-pytorch


NESTED = ("state_dict", "model_state")  # below which of its keys a file may hold the weights


def weights_in(path: str) -> dict[str, Tensor]:
    """Read a ``.safetensors`` file, or one that ``torch.load`` reads (``.pth``, ``.pt``, ``.bin``, ``.pyth``).

    Args:
        path: A mapping from names to tensors, by itself, below ``"state_dict"``, or below ``"model_state"`` as in
            pytorchvideo's model zoo.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights={path!r} is not a file; give a .safetensors, .pth, .pt, .pyth or .bin file.")
    try:
        found: object = load_file(path) if path.endswith(".safetensors") else load_plain(path, "weights")
    except (SafetensorError, RuntimeError, KeyError, EOFError) as error:  # each layout has its own
        raise ValueError(
            f"weights={path!r} cannot be read, because it is damaged or not a file of tensors; save model.state_dict() "
            "with torch.save or safetensors."
        ) from error
    for key in NESTED:
        found = found[key] if isinstance(found, Mapping) and isinstance(found.get(key), Mapping) else found
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"weights={path!r} contains no mapping from names to tensors; save model.state_dict().")
    return dict(found)


def read_weights(path: str, model: nn.Module) -> None:
    """Copy the weights of a file into ``model``, whose names and shapes must be those of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds something else.
        RuntimeError: It holds the weights of another network.
    """
    found = weights_in(path)
    renamed = _efficientnet_lite(found, model) if FOREIGN in found else found
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        raise RuntimeError(
            f"weights={path!r} are those of another network: {_difference(renamed, model.state_dict())}"
        ) from error


def _difference(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Say in a few words how the tensors of a file differ from a network's own."""
    lacking, besides = [name for name in own if name not in found], [name for name in found if name not in own]
    shapes = [
        f"{name!r} has the shape {tuple(found[name].shape)} there and {tuple(tensor.shape)} here"
        for name, tensor in own.items()
        if name in found and found[name].shape != tensor.shape
    ]
    told = [f"{len(lacking)} tensors are lacking, such as {lacking[0]!r}"] if lacking else []
    told += [f"{len(besides)} are unknown, such as {besides[0]!r}"] if besides else []
    return ", ".join([*told, *shapes[:1]])


def _efficientnet_lite(found: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename: both networks list the same layers in the order in which an image passes them."""
    names = model.state_dict()
    if [value.shape for value in names.values()] != [value.shape for value in found.values()]:
        raise ValueError("the file holds an EfficientNet-Lite; give timm/tf_efficientnet_lite0 (to 4) as backbone")
    return dict(zip(names, found.values(), strict=True))
