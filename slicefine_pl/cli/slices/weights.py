"""Read and write the weights of a model: a safetensors file, or a folder of them with the model's other files."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from slicefine_pl.files.atomic import atomic_folder, write_atomic
from slicefine_pl.files.safe_load import load_plain
from slicefine_pl.pretrained import PACKAGE, locate
from slicefine_pl.slicing import SliceFile
from slicefine_pl.slicing.checkpoint import KEY

SUFFIX, CHECKPOINT = ".safetensors", ".ckpt"
SINGLE, INDEX = f"model{SUFFIX}", f"model{SUFFIX}.index.json"
METADATA = {"format": "pt"}  # transformers refuses files without it
# The weights of the whole model, and the same in other forms. Folders inside may contain parts of it, such as the last
# layer of sentence-transformers.
OWN_WEIGHTS = (f"*{SUFFIX}", f"*{SUFFIX}.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt")
OTHER_FORMS = ("onnx", "openvino", "*.onnx", "*.h5", "*.msgpack", "*.ot", "*.gguf")


def read_weights(model: str) -> tuple[Path, dict[str, Tensor]]:
    """Read all weights of a model.

    Args:
        model: A safetensors file; a folder with ``model.safetensors`` or its parts; or
            ``"package:<package>/<folder>"``.

    Returns:
        The file or folder, and the tensors by name.

    Raises:
        FileNotFoundError: There are no such files.
        ValueError: A file is damaged.
    """
    place = Path(locate(model) if model.startswith(PACKAGE) else model)
    if not place.exists():
        raise FileNotFoundError(f"{model!r} is not a file or folder; give a folder with {SINGLE}, or such a file.")
    tensors: dict[str, Tensor] = {}
    for file in [place] if place.is_file() else _files(place):
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{str(file)!r} is damaged or not a safetensors file ({error}).") from None
    return place, tensors


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        try:
            names = set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{str(folder / INDEX)!r} is damaged ({type(error).__name__}: {error}).") from None
        return [folder / name for name in sorted(names)]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    raise FileNotFoundError(f"{str(folder)!r} contains neither {SINGLE} nor {INDEX}; save the model as safetensors.")


def write_weights(source: Path, tensors: Mapping[str, Tensor], out: Path) -> None:
    """Write weights in the form of ``source``: a file, or a folder with the other files of that folder.

    Weights in other forms, such as ONNX, are left out: they would be those of ``source``.

    Raises:
        FileExistsError: ``out`` exists.
        ValueError: ``out`` lies inside of the folder ``source``.
        OSError: It cannot be written. Nothing is left then.
    """
    if os.path.lexists(out):
        raise FileExistsError(f"{str(out)!r} exists; give a new name.")
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if source.is_file():
        write_atomic(out, save(plain, METADATA))
        return
    if out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{str(out)!r} lies inside of {str(source)!r}, which is copied; give another folder.")
    own, others = shutil.ignore_patterns(*OWN_WEIGHTS), shutil.ignore_patterns(*OTHER_FORMS)

    def left_out(folder: str, names: list[str]) -> set[str]:
        return others(folder, names) | (own(folder, names) if Path(folder) == source else set())

    with atomic_folder(out) as new:
        shutil.copytree(source, new, ignore=left_out)
        save_file(plain, new / SINGLE, METADATA)


def read_slices(path: Path) -> SliceFile:
    """Read a slice file, or the slices in a Lightning checkpoint of ``SliceFineCallback(checkpoint="slices")``.

    The names in a checkpoint are those of the LightningModule; the name of its only child, such as ``model.``, is left
    out, as in slice files.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It is damaged, or contains something else.
    """
    if path.suffix != CHECKPOINT:
        return SliceFile.read(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {str(path)!r} does not exist; give the path of one.")
    saved = load_plain(path, "checkpoint")
    if not isinstance(saved, dict) or KEY not in saved:
        raise ValueError(
            f"checkpoint {str(path)!r} contains the whole model; slicefine merge completes those of"
            " SliceFineCallback(checkpoint='slices')."
        )
    file = SliceFile.unpack(saved[KEY]["content"], saved[KEY]["tensors"])
    first = {name.split(".")[0] for name in (*file.whole, *file.base)}
    return file.without_prefix(f"{first.pop()}.") if len(first) == 1 else file


def with_names_of(file: SliceFile, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a base under the names that they have in a slice file.

    A network with a new head names its backbone ``"bert."``, for instance, where the base has no such prefix, or the
    other way round. Parameters that the base lacks, such as the new head, are added.
    """
    wanted = set(file.base_tensors().values())
    first = next(iter(sorted(wanted)), "")
    parts = first.split(".")
    added = [".".join([*parts[:count], ""]) for count in range(1, len(parts))]
    removed = [name.removesuffix(first) for name in tensors if first and name.endswith(f".{first}")]
    candidates = [
        dict(tensors),
        *({prefix + name: tensor for name, tensor in tensors.items()} for prefix in added),
        *({name.removeprefix(prefix): tensor for name, tensor in tensors.items()} for prefix in removed),
    ]
    found = next((each for each in candidates if wanted <= each.keys()), candidates[0])
    return {**{name: values.clone() for name, values in file.whole.items()}, **found}
