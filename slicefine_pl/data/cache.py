"""The cache folder, for files that can be made again: downloads and tokenized texts.

Files are written atomically. Damage on the disk is detected: a checksum follows the content, or the checksum of the
content is known.
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
    """Return the content of a file written by ``write_checked``, or ``None`` if it has to be made again.

    A file that is damaged, or was written under another name, raises a warning.
    """
    content = read_if_exists(path)
    if content is None:
        return None
    body, checksum = content[:-CHECKSUM], content[-CHECKSUM:]
    if checksum == _checksum(path, body):
        return body
    rank_zero_warn(f"Cache file {str(path)!r} is damaged; it is made again.")
    return None


def write_checked(path: Path, content: bytes) -> None:
    """Write a file atomically, with a checksum at its end."""
    write_atomic(path, content + _checksum(path, content))


def read_if_exists(path: Path) -> bytes | None:
    """Return the content of a file, or ``None`` if it does not exist or cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _checksum(path: Path, content: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + content).digest()
