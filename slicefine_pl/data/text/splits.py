"""The splits of text files: one file per split in a folder, or percentages of a single file."""

from collections.abc import Collection, Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

PERCENTAGES = {"train": 70, "val": 10, "test": 20}  # of the texts of a single file or demo dataset
SHOWN = 8  # entries of a folder in a message
FILES = {"train": ("train",), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}


def split_files(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Find the file of each split. Other entries of the folder are listed in a warning.

    Args:
        folder: Folder with one file for each of train, validation and test.
        suffixes: Suffixes that such a file may have.

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
        raise FileNotFoundError(f"folder {str(folder)!r} must have exactly one file {wanted}; it has {present}.")
    return found[0]
