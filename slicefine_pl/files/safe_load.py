"""Load checkpoints and weights from untrusted sources: tensors and plain values are loaded, anything else is refused.

``torch.load(weights_only=True)`` already refuses code, but its error message advises the user to disable the check.
The metadata of a distributed checkpoint is unpickled by torch without any check (``FileSystemReader.read_metadata``,
torch 2.15). This module covers both.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import torch

META = "torch.distributed.checkpoint.metadata"
METADATA_CLASSES = {  # everything in the metadata of a distributed checkpoint except dtypes and plain values
    *(f"{META}.{name}" for name in ("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex")),
    *(
        f"{META}.{name}"
        for name in ("StorageMeta", "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING")
    ),
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.serialization._get_layout",
    "torch.Size",
    "collections.OrderedDict",
    *(f"pathlib.{name}" for name in ("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath")),
}


def load_plain(path: str | Path, name: str, **settings: Any) -> Any:
    """Load a file written by ``torch.save`` that contains only tensors and plain values.

    Args:
        path: File to load, onto the CPU.
        name: Name of the setting that gave the path, for the error message, e.g. ``"ckpt_path"``.
        settings: Further arguments of ``torch.load``.

    Raises:
        ValueError: The file contains other objects, which could run code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, **settings)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{name}={str(path)!r} {describe_unpickling_error(error)}"
        ) from None  # hide torch's advice to run that code


def check_sharded_checkpoint(folder: Path, name: str) -> None:
    """Refuse a distributed checkpoint that could run code when it is loaded.

    Args:
        folder: Folder of the checkpoint.
        name: Name of the setting that gave the folder, for the error message.

    Raises:
        OSError: A file is missing.
        ValueError: The checkpoint contains objects other than tensors and plain values.
    """
    load_plain(folder / "meta.pt", name)
    metadata = folder / ".metadata"
    try:
        with metadata.open("rb") as file:
            _MetadataUnpickler(file).load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{name}={str(metadata)!r} {describe_unpickling_error(error)}") from None


class _MetadataUnpickler(pickle.Unpickler):
    """Unpickler that makes only the classes of distributed checkpoint metadata."""

    def find_class(self, module: str, name: str) -> Any:
        found = f"{module}.{name}"
        if found in METADATA_CLASSES or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"GLOBAL {found}")


def describe_unpickling_error(error: pickle.UnpicklingError) -> str:
    """Return why a file was refused, as the end of a sentence, without torch's advice to load it anyway."""
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"contains {found[1]}, which could run code of its author, and was not loaded; give a file of tensors."
    return "cannot be read, because it is damaged or not a file of tensors; give a file of plain tensors."
