"""Write a folder whole or not at all.

Answers: how does an export replace an earlier one, without leaving half a folder on a full disk?
"""

import tempfile
from collections.abc import Callable
from pathlib import Path


def write_folder(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a new folder beside ``path``, then put it in its place.

    Args:
        path: Folder to make; an empty folder or an earlier export, which holds ``config.json``, is replaced.
        write: Fills the folder it is given, which does not exist yet.

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
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            new = Path(scratch) / "new"
            write(new)
            if target.exists():
                target.rename(Path(scratch) / "old")
            new.rename(target)
    except (OSError, RuntimeError) as error:  # safetensors reports a full disk as its own RuntimeError
        raise OSError(
            f"export to {str(target)!r} failed: {error}; give a folder on a writable disk with space."
        ) from error
    return target
