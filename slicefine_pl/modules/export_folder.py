"""Folders of transformers models: do they hold weights, and how one is written whole or not at all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers.utils import logging

from slicefine_pl.files.atomic import atomic_folder


def write_export(path: str | Path, save: Callable[[Path], None]) -> Path:
    """Write a model's folder, or nothing at all.

    Args:
        path: Folder to make; an empty folder or an earlier export is replaced.
        save: Writes the files into the folder that it is given.

    Returns:
        The folder.

    Raises:
        FileExistsError: ``path`` holds something else.
        OSError: It cannot be written, as the disk is full or the place is read-only.
    """
    target = Path(path)
    if target.exists() and any(target.iterdir()) and not (target / "config.json").is_file():
        raise FileExistsError(f"export path {str(target)!r} holds other files; give a new or an empty folder.")
    try:
        with atomic_folder(target) as new, silence_transformers():
            save(new)
    except (OSError, RuntimeError, SafetensorError) as error:  # safetensors has its own error for a full disk
        raise OSError(
            f"export to {str(target)!r} failed: {error}; give a folder on a writable disk with space."
        ) from error
    return target


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Keep transformers from reporting what the modules say themselves, and from drawing bars."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
