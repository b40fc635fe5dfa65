"""Files of weights from strangers: read if they contain tensors and plain values, refused if they could run code.

Answers one question: is it safe to load this file?  ``torch.load`` refuses code, but advises to run it; the description
of a distributed checkpoint is unpickled by torch without a question (``FileSystemReader.read_metadata``, torch 2.15).
"""

import pickle
import re
from pathlib import Path
from typing import Any

import torch

META = "torch.distributed.checkpoint.metadata"
DESCRIPTION = {  # all that a description of shares is made of, besides dtypes and plain values
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


def read_plain(path: str | Path, name: str, **settings: Any) -> Any:
    """Read a file that ``torch.save`` has written, if it contains tensors and plain values only.

    Args:
        path: The file.
        name: What the file is, for the error message, e.g. ``"ckpt_path"``.
        settings: Of ``torch.load``.

    Raises:
        ValueError: It contains other objects, which could run code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, **settings)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{name}={str(path)!r} {pickled_code(error)}") from None  # torch advises to run that code


def check_shares(folder: Path, name: str) -> None:
    """Refuse a distributed checkpoint that could run code.

    Args:
        folder: The checkpoint.
        name: What it is, for the error message.

    Raises:
        OSError: A file is missing.
        ValueError: The folder contains other objects than tensors and plain values.
    """
    read_plain(folder / "meta.pt", name)
    description = folder / ".metadata"
    try:
        with description.open("rb") as file:
            _Description(file).load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{name}={str(description)!r} {pickled_code(error)}") from None


class _Description(pickle.Unpickler):
    """Makes nothing but what a description of shares is made of."""

    def find_class(self, module: str, name: str) -> Any:
        found = f"{module}.{name}"
        if found in DESCRIPTION or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"GLOBAL {found}")


def pickled_code(error: pickle.UnpicklingError) -> str:
    """Say why a file was refused, without torch's advice to run what it contains."""
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"contains {found[1]}, which could run code of its author, and was not loaded; give a file of tensors."
    return "cannot be read, as it is damaged or holds something else; give a file of plain tensors."
