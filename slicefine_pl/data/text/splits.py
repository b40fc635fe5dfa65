"""Which file of a folder holds which split, and how the texts of a single file are shared out."""

from collections.abc import Collection, Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

SHARES = {"train": 70, "val": 10, "test": 20}  # percent of the texts of one file or demo set
SHOWN = 8  # entries of a folder in a message
FILES = {"train": ("train",), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}


def split_files(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Find the file of each split; a warning names what else the folder holds.

    Args:
        folder: Holds one file for each of train, validation and test.
        suffixes: Endings that such a file may have.

    Raises:
        FileNotFoundError: A split has no file, or more than one.
    """
    found = {name: _find(folder, stems, suffixes) for name, stems in FILES.items()}
    others = sorted(
        f"{path.name}/" if path.is_dir() else path.name for path in set(folder.iterdir()) - {*found.values()}
    )
    if others:
        shown = ", ".join(others[:SHOWN]) + (", ..." if len(others) > SHOWN else "")
        rank_zero_warn(f"{len(others)} entries of folder {str(folder)!r} are not used: {shown}.")
    return found


def _find(folder: Path, stems: Sequence[str], suffixes: Collection[str]) -> Path:
    found = [path for stem in stems for suffix in suffixes if (path := folder / f"{stem}{suffix}").is_file()]
    if len(found) != 1:
        wanted = f"{' or '.join(stems)} with one of {sorted(suffixes)}"
        present = sorted(path.name for path in folder.iterdir())[:SHOWN]
        raise FileNotFoundError(f"folder {str(folder)!r} must hold exactly one file {wanted}; it holds {present}.")
    return found[0]
