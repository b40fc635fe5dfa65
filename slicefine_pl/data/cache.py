"""The folder for what can be made again: downloads and tokenised texts."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$SLICEFINE_CACHE``, else ``$XDG_CACHE_HOME/slicefine_pl``, else ``~/.cache/slicefine_pl``."""
    if own := os.environ.get("SLICEFINE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slicefine_pl"
