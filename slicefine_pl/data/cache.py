"""The folder for what can be made again: downloads and tokenised texts.

A file there is whole or absent, as ``files.atomic`` writes it.  What a disk damages later is seen: a checksum
stands at the end of a file, or the content's own is known.
"""

import hashlib
import os
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from slicefine_pl.files.atomic import write_atomic

CHECKSUM = hashlib.sha256().digest_size  # bytes at the end of a checked file


def cache_folder() -> Path:
    """``$SLICEFINE_CACHE``, else ``$XDG_CACHE_HOME/slicefine_pl``, else ``~/.cache/slicefine_pl``."""
    if own := os.environ.get("SLICEFINE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slicefine_pl"


def read_checked(path: Path) -> bytes | None:
    """Content of a file that ``write_checked`` wrote; ``None`` where it has to be made again.

    A damaged file, or one that was written under another name, is reported in a warning.
    """
    content = read_whole(path)
    if content is None:
        return None
    body, checksum = content[:-CHECKSUM], content[-CHECKSUM:]
    if checksum == _checksum(path, body):
        return body
    rank_zero_warn(f"Cache file {str(path)!r} is damaged; it is made again.")
    return None


def write_checked(path: Path, content: bytes) -> None:
    """Write a file with its checksum, as ``write_atomic`` does."""
    write_atomic(path, content + _checksum(path, content))


def read_whole(path: Path) -> bytes | None:
    """Content of a file; ``None`` where it does not exist or cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _checksum(path: Path, content: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + content).digest()
