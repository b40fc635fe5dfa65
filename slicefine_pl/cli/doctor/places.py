"""Places that runs write to: shared memory, and the folder of the results."""

import os
import shutil
import tempfile
from pathlib import Path

from slicefine_pl.cli.doctor.finding import GIB, Finding, Verdict

# A batch of 32 clips of 8 frames at 224 pixels has 0.14 GiB, and each data loader worker holds two batches.
SHARED_MEMORY_BYTES = GIB


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Check the shared memory, through which data loader workers pass batches; a container's 64 MB are too little."""
    if not folder.is_dir():
        return Finding("places", str(folder), "not on this system", Verdict.ABSENT)
    usage = shutil.disk_usage(folder)
    found = f"{usage.total / GIB:.2g} GiB, {usage.free / GIB:.2g} free"
    if usage.total < SHARED_MEMORY_BYTES:
        remedy = "docker run --shm-size 8g, or data.num_workers 0"
        return Finding("places", str(folder), f"{found}: too little for many workers", Verdict.WARNING, remedy)
    return Finding("places", str(folder), found)


def check_writable(folder: Path) -> Finding:
    """Write a file into the folder, or into the one where it will be created, and remove it."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    name = f"folder {folder}"
    try:
        with tempfile.NamedTemporaryFile(dir=existing):
            pass
    except OSError as error:
        found = f"not writable for user {os.getuid() if hasattr(os, 'getuid') else ''}: {error.strerror}"
        remedy = f"make {str(existing.absolute())!r} writable for that user"
        return Finding("places", name, found, Verdict.BROKEN, remedy)
    found = "writable" if existing == folder else "writable, created by the first run"
    return Finding("places", name, f"{found}; {shutil.disk_usage(existing).free / GIB:.0f} GiB free")
