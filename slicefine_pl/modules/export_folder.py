"""Write the folder of an exported network, completely or not at all."""

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from slicefine_pl.files.atomic import atomic_folder
from slicefine_pl.modules.auto_model import silence_transformers


def write_export(path: str | Path, save: Callable[[Path], None]) -> Path:
    """Write an exported network. If writing fails, nothing changes.

    Args:
        path: Folder to make. An empty folder or an earlier export is replaced.
        save: Function that writes the files into the folder that it is given.

    Returns:
        ``path`` as a ``Path``.

    Raises:
        FileExistsError: ``path`` contains other files.
        OSError: The folder cannot be written, e.g. because the disk is full or read-only.
    """
    target = Path(path)
    if target.exists() and any(target.iterdir()) and not (target / "config.json").is_file():
        raise FileExistsError(f"export path {str(target)!r} contains other files; give a new or an empty folder.")
    try:
        with atomic_folder(target) as new, silence_transformers():
            save(new)
    except (OSError, RuntimeError, SafetensorError) as error:  # safetensors has its own error for a full disk
        raise OSError(
            f"export to {str(target)!r} failed: {error}; give a folder on a writable disk with space."
        ) from error
    return target
