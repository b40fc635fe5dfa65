"""Labelled images by index: from a folder, from memory, or from torchvision.

Answers: which images and labels does a split have?  Reads no pixels before they are asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from slicefine_pl.data.image.pixels import SUFFIXES, as_rgb, decoded, read_rgb
from slicefine_pl.data.labels import in_order

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDERS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}


class ImageSet(Protocol):
    """Labelled images of one split."""

    @property
    def labels(self) -> Sequence[int]:
        """Class index of each image."""

    def place(self, index: int) -> str:
        """How a message calls an image: its path, or its set and number."""

    def read(self, index: int) -> "Image":
        """Decode an image as RGB; raises ``UnreadableImageError``."""


@dataclass(frozen=True)
class FileImages:
    """Images in files."""

    paths: Sequence[str]
    labels: Sequence[int]

    def place(self, index: int) -> str:
        """Return its path."""
        return self.paths[index]

    def read(self, index: int) -> "Image":
        """Decode it."""
        return read_rgb(self.paths[index])


@dataclass(frozen=True)
class ArrayImages:
    """Grey images in memory, ``pixels`` of shape ``(N, H, W)``, 8 bits."""

    source: str
    pixels: "np.ndarray[Any, np.dtype[np.uint8]]"
    labels: Sequence[int]

    def place(self, index: int) -> str:
        """Return the set and the number."""
        return f"{self.source}[{index}]"

    def read(self, index: int) -> "Image":
        """Return it as RGB."""
        from PIL import Image

        return Image.fromarray(self.pixels[index]).convert("RGB")


@dataclass(frozen=True)
class LibraryImages:
    """Some images of a torchvision dataset, by their ``rows`` in it."""

    source: str
    dataset: Any
    rows: Sequence[int]
    labels: Sequence[int]

    def place(self, index: int) -> str:
        """Return the set and the row."""
        return f"{self.source}[{self.rows[index]}]"

    def read(self, index: int) -> "Image":
        """Let the dataset decode it."""
        return decoded(lambda: as_rgb(self.dataset[self.rows[index]][0]), self.place(index))


@dataclass(frozen=True)
class Splits:
    """The splits ``"train"``, ``"val"`` and ``"test"``, and the names of their classes."""

    sets: Mapping[str, ImageSet]
    names: Sequence[str]


def read_folder(root: str) -> Splits:
    """List the images of ``root/{train,val,test}/<class>/``, at any depth below a class.

    Hidden files and folders, linked folders below a class, and files that are no images by their suffix are passed
    over.

    Raises:
        FileNotFoundError: The folder or one of its splits does not exist.
        ValueError: A split has no classes or other ones than ``train``, or a class has no images.
    """
    top = Path(root).expanduser()
    if not top.is_dir():
        raise FileNotFoundError(f"root={root!r} is no folder; give one that holds train, val and test.")
    found = {name: _classes(_split(top, stems)) for name, stems in FOLDERS.items()}
    names = in_order(found["train"])
    if len(names) < 2:
        raise ValueError(f"root={root!r} has only the class {names[0]!r} in train; give at least two class folders.")
    for split, classes in found.items():
        if odd := sorted(set(classes) ^ set(names)):
            where = f"in {split} but not in train" if odd[0] in classes else f"in train but not in {split}"
            raise ValueError(
                f"root={root!r} has the class {odd[0]!r} {where} ({len(odd)} such in all); every split needs the same "
                "class folders."
            )
    sets = {split: _files([classes[name] for name in names]) for split, classes in found.items()}
    return Splits(sets, names)


def images_below(folder: Path) -> list[Path]:
    """Every image file below a folder, in order of the path; a link to nowhere counts, and is broken when read."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.is_dir())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def spread(labels: Sequence[int], seed: int) -> list[int]:
    """Order the rows so that the first n of them hold every class in its proportion, for every n.

    Each class is shuffled and laid out evenly over [0, 1); what falls on one point goes by chance.
    """
    generator = torch.Generator().manual_seed(seed)
    chance = torch.rand(len(labels), generator=generator, dtype=torch.float64).tolist()
    rows: dict[int, list[int]] = {}
    for row in torch.randperm(len(labels), generator=generator).tolist():
        rows.setdefault(labels[row], []).append(row)
    at = {row: (place + 0.5) / len(group) for group in rows.values() for place, row in enumerate(group)}
    return sorted(range(len(labels)), key=lambda row: (at[row], chance[row]))


def _split(root: Path, stems: Sequence[str]) -> Path:
    folders = [root / stem for stem in stems if (root / stem).is_dir()]
    if len(folders) != 1:
        present = sorted(path.name for path in root.iterdir())[:8]
        raise FileNotFoundError(
            f"root={str(root)!r} must hold exactly one folder {' or '.join(stems)}; it holds {present or 'nothing'}."
        )
    return folders[0]


def _classes(split: Path) -> dict[str, list[Path]]:
    folders = sorted(path for path in split.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise ValueError(f"folder {str(split)!r} has no class folders; put the images of each class into one.")
    classes = {folder.name: images_below(folder) for folder in folders}
    if empty := [name for name, images in classes.items() if not images]:
        inside = sorted(path.name for path in (split / empty[0]).iterdir())[:3]
        raise ValueError(
            f"class folder {str(split / empty[0])!r} has no images but {inside or 'nothing'}; put some in (known "
            f"suffixes: {' '.join(SUFFIXES)}), or remove the folder from every split."
        )
    return classes


def _files(classes: Sequence[Sequence[Path]]) -> FileImages:
    pairs = [(str(path), label) for label, paths in enumerate(classes) for path in paths]
    return FileImages([path for path, _ in pairs], [label for _, label in pairs])
