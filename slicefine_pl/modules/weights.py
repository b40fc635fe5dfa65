"""Load files of weights into a network.

The names in the file must be those of the network. The only exception is EfficientNet-Lite with the names of the Python
package ``efficientnet-lite-pytorch``.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from slicefine_pl.files.safe_load import load_plain

FOREIGN = "_conv_stem.weight"  # first name in the weights of efficientnet-lite-pytorch
NESTED = ("state_dict", "model_state")  # keys that may contain the weights


def weights_in(path: str) -> dict[str, Tensor]:
    """Read a ``.safetensors`` file, or one that ``torch.load`` reads (``.pth``, ``.pt``, ``.bin``, ``.pyth``).

    Args:
        path: File with a mapping from names to tensors, possibly under the key ``"state_dict"``, or under
            ``"model_state"`` as in pytorchvideo's model zoo.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file contains something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights={path!r} is not a file; give a .safetensors, .pth, .pt, .pyth or .bin file.")
    try:
        found: object = load_file(path) if path.endswith(".safetensors") else load_plain(path, "weights")
    except (SafetensorError, RuntimeError, KeyError, EOFError) as error:  # each format has its own errors
        raise ValueError(
            f"weights={path!r} cannot be read, because it is damaged or not a file of tensors; save model.state_dict() "
            "with torch.save or safetensors."
        ) from error
    for key in NESTED:
        found = found[key] if isinstance(found, Mapping) and isinstance(found.get(key), Mapping) else found
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"weights={path!r} is not a mapping from names to tensors; save model.state_dict().")
    return dict(found)


def read_weights(path: str, model: nn.Module) -> None:
    """Copy the weights of a file into ``model``. Names and shapes must be equal.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file contains something else.
        RuntimeError: The file contains the weights of another network.
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
    """Return a short description of how the tensors of a file differ from those of a network."""
    missing, unknown = [name for name in own if name not in found], [name for name in found if name not in own]
    shapes = [
        f"{name!r} has the shape {tuple(found[name].shape)} in the file and {tuple(tensor.shape)} in the network"
        for name, tensor in own.items()
        if name in found and found[name].shape != tensor.shape
    ]
    parts = [f"{len(missing)} tensors are missing, such as {missing[0]!r}"] if missing else []
    parts += [f"{len(unknown)} are unknown, such as {unknown[0]!r}"] if unknown else []
    return ", ".join([*parts, *shapes[:1]])


def _efficientnet_lite(found: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the weights by position: both networks list the same layers in the order of the forward pass."""
    names = model.state_dict()
    if [value.shape for value in names.values()] != [value.shape for value in found.values()]:
        raise ValueError("the file contains an EfficientNet-Lite; give timm/tf_efficientnet_lite0 (to 4) as backbone")
    return dict(zip(names, found.values(), strict=True))
