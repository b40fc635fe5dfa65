"""How every file is written: whole, or not at all.

Answers one question: what is on the disk after a crash?  A file is written next to its target, on the same device,
flushed to the disk and then renamed.  Until the new file is complete, the old one stays as it was.
"""

import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

ADVICE = "Free some space, or choose another folder."
UNCHANGED = "The earlier file is unchanged."
OF_THE_MACHINE = (OSError, ImportError, MemoryError, RuntimeError, ValueError)  # disks, missing packages, odd numbers


def write_whole(path: str | Path, content: bytes | memoryview | str) -> Path:
    """Write a file so that no other process, and no crash, ever sees a part of it; make its folder if need be.

    Args:
        path: The file; one of the same name is replaced.
        content: Its bytes, or text that is written as UTF-8.

    Returns:
        The file.

    Raises:
        OSError: The file cannot be written.  The message names it.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return Path(path)


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of ``path`` when the block ends; if the block raises, nothing changes.

    Raises:
        OSError: The file cannot be written.  The message names it.
    """
    target = Path(path)
    draft = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _draft(draft) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not draft.exists():
                _name(file, draft)
        os.replace(draft, target)
        _sync(target.parent)
    except OSError as error:
        named = OSError(error.errno, error.strerror, str(target))
        named.add_note(f"{ADVICE} {UNCHANGED}" if os.path.lexists(target) else ADVICE)
        raise named from error
    finally:
        draft.unlink(missing_ok=True)


def _draft(draft: Path) -> BinaryIO:
    """A file without a name, which a killed process does not leave behind; a named one where the system has none."""
    try:
        return os.fdopen(os.open(draft.parent, os.O_TMPFILE | os.O_WRONLY, 0o666), "wb")
    except (AttributeError, OSError):  # not Linux, or a file system that does not know them
        return draft.open("xb")


def _name(file: BinaryIO, path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.link(f"/proc/self/fd/{file.fileno()}", path.name, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def replace_link(link: Path, target: Path) -> None:
    """Make a symbolic link, relative where it stands, that takes the place of ``link`` at once."""
    draft = link.with_name(f".{secrets.token_hex(8)}.part")
    draft.symlink_to(os.path.relpath(target, link.parent))
    os.replace(draft, link)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Make a new folder that takes the place of ``path`` when the block ends; if the block raises, nothing changes.

    Yields:
        A path next to ``path`` at which the block makes the folder.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=target.parent) as scratch:
        new = Path(scratch) / "new"
        yield new
        replace_folder(new, target)


def replace_folder(new: Path, target: Path) -> None:
    """Put a complete folder in the place of another folder or file on the same device."""
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
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def warn_on_error(what: str | Path, errors: tuple[type[Exception], ...] = OF_THE_MACHINE) -> Iterator[None]:
    """Write something that the result of a run does not need: an error becomes a warning, and the run goes on.

    Args:
        what: The file, or what else the block writes; the warning names it.
        errors: Which errors become a warning.
    """
    try:
        yield
    except errors as error:
        reason = error.strerror if isinstance(error, OSError) and error.filename == str(what) else error
        warnings.warn(f"{what} was not written ({reason}); the run goes on without it.", stacklevel=3)
