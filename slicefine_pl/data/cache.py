"""The folder for what can be made again: downloads and tokenised texts.

A file there is whole or absent: it is written under another name and then renamed.
"""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$SLICEFINE_CACHE``, else ``$XDG_CACHE_HOME/slicefine_pl``, else ``~/.cache/slicefine_pl``."""
    if own := os.environ.get("SLICEFINE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slicefine_pl"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that no other process, and no crash, ever sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
