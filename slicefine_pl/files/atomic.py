"""Atomic writes: after a crash a file is either the complete new one or the unchanged old one.

A new file is written next to its target, on the same device, flushed to the disk and then renamed over the target.
Folders and symbolic links are replaced in the same way.
"""

import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

ADVICE = "Free some space, or choose another folder."
UNCHANGED = "The earlier file is unchanged."
# Errors that come from the environment: a full disk, a missing package, numbers that cannot be plotted.
ENVIRONMENT_ERRORS = (OSError, ImportError, MemoryError, RuntimeError, ValueError)


def write_atomic(path: str | Path, content: bytes | memoryview | str) -> Path:
    """Write a file in one step: no other process ever reads a part of it, and a crash leaves no part behind.

    Args:
        path: File to write. An existing file is replaced; missing parent folders are made.
        content: Bytes, or text that is written as UTF-8.

    Returns:
        ``path`` as a ``Path``.

    Raises:
        OSError: The file cannot be written. The message contains its path.
    """
    with open_atomic(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return Path(path)


@contextmanager
def open_atomic(path: str | Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces ``path`` when the block ends. If the block raises, ``path`` does not change.

    Raises:
        OSError: The file cannot be written. The message contains its path.
    """
    target = Path(path)
    draft = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _open_draft(draft) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not draft.exists():
                _link(file, draft)
        os.replace(draft, target)
        _sync(target.parent)
    except OSError as error:
        named = OSError(error.errno, error.strerror, str(target))
        named.add_note(f"{ADVICE} {UNCHANGED}" if os.path.lexists(target) else ADVICE)
        raise named from error
    finally:
        draft.unlink(missing_ok=True)


def _open_draft(draft: Path) -> BinaryIO:
    """Open a file without a name, so that a killed process leaves nothing behind. Use ``draft`` where that fails."""
    try:
        return os.fdopen(os.open(draft.parent, os.O_TMPFILE | os.O_WRONLY, 0o666), "wb")
    except (AttributeError, OSError):  # not Linux, or the file system does not support O_TMPFILE
        return draft.open("xb")


def _link(file: BinaryIO, path: Path) -> None:
    """Give an open file without a name the name ``path``."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.link(f"/proc/self/fd/{file.fileno()}", path.name, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def replace_link(link: Path, target: Path) -> None:
    """Replace ``link`` by a relative symbolic link to ``target``, in one step."""
    draft = link.with_name(f".{secrets.token_hex(8)}.part")
    draft.symlink_to(os.path.relpath(target, link.parent))
    os.replace(draft, link)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Fill a new folder that replaces ``path`` when the block ends. If the block raises, ``path`` does not change.

    Safetensors writes files for their owner alone. They become as readable as the folder, if the disk knows modes.

    Yields:
        A path next to ``path`` that does not exist yet; the block makes the folder there.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=target.parent) as scratch:
        new = Path(scratch) / "new"
        yield new
        for file in new.rglob("*.safetensors"):
            if not file.is_symlink():
                with suppress(OSError):
                    file.chmod(file.stat().st_mode | new.stat().st_mode & 0o666)
        replace_folder(new, target)


def replace_folder(new: Path, target: Path) -> None:
    """Move a complete folder to ``target``, open_atomic a folder or file there. Both are on the same device."""
    for file in new.rglob("*"):
        _sync(file)
    if target.exists():
        old = new.with_name(f".{secrets.token_hex(8)}.part")
        target.rename(old)
        try:
            new.rename(target)
        except OSError:
            old.rename(target)
            raise
        old.unlink() if old.is_file() else shutil.rmtree(old)
    else:
        new.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    """Wait until the content of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def warn_on_error(what: str | Path, errors: tuple[type[Exception], ...] = ENVIRONMENT_ERRORS) -> Iterator[None]:
    """Write an optional file, such as a plot: an error becomes a warning, and the run continues.

    Args:
        what: The file, or a description of what the block writes, for the warning.
        errors: Errors that become a warning. Others are raised.
    """
    try:
        yield
    except errors as error:
        reason = error.strerror if isinstance(error, OSError) and error.filename == str(what) else error
        warnings.warn(f"{what} was not written ({reason}); the run continues without it.", stacklevel=3)
