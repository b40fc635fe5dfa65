"""Is a path on a local disk? Lightning accepts remote paths too, such as ``s3://bucket/run``."""

import os
from pathlib import Path


def is_local(path: str | os.PathLike[str]) -> bool:
    """Whether a path or URL names a local file; ``file://`` does, ``s3://`` and ``simplecache::...`` do not."""
    protocol, separator, _ = os.fspath(path).replace("::", "://").partition("://")
    return not separator or protocol == "file"


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return the ``Path`` of a local path or ``file://`` URL."""
    return Path(os.fspath(path).removeprefix("file://")).expanduser()
