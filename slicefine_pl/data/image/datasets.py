"""Labelled images by index: from a folder, from memory, or from torchvision.

Answers: which images and labels does a split have?  Reads no pixels before they are asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from slicefine_pl.data.files import FileScan
from slicefine_pl.data.folders import no_test_split, read_class_folders
from slicefine_pl.data.image.decoding import as_rgb, decoded, read_rgb, suffixes
from slicefine_pl.data.labels import in_order
from slicefine_pl.data.shares import parse_shares

if TYPE_CHECKING:
    from PIL.Image import Image


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
    """The splits ``"train"``, ``"val"`` and, where there is one, ``"test"``, and the names of their classes."""

    sets: Mapping[str, ImageSet]
    names: Sequence[str]


def read_folder(root: str, split: str | None = None) -> Splits:
    """List the images of ``root/{train,val,test}/<class>/``, at any depth below a class.

    What is not used is counted in a warning: hidden files, links to nowhere, linked folders below a class, files of
    other types, empty ones, and those outside class folders.

    Args:
        root: The folder.
        split: Shares of train, val and test, such as ``"0.7/0.1/0.2"``, of the files of ``root/<class>/``.

    Raises:
        FileNotFoundError: The folder, or its ``train`` or ``val``, does not exist.
        ValueError: A split has no classes or other ones than ``train``, or a class has no images.
    """
    top = Path(root).expanduser()
    if not top.is_dir():
        raise FileNotFoundError(f"data.root={root!r} is not a folder; give one with folders train, val and test.")
    scan = FileScan(f"data.root={root!r}", top, suffixes())
    found = read_class_folders(scan, None if split is None else parse_shares(split))
    scan.report()
    if "test" not in found:
        rank_zero_warn(no_test_split(scan.name))
    names = in_order(name for _, name in found["train"])
    if len(names) < 2:
        raise ValueError(f"{scan.name} has only the class {names[0]!r}; give at least two class folders.")
    index = {name: label for label, name in enumerate(names)}
    sets = {
        part: FileImages([str(path) for path, _ in files], [index[name] for _, name in files])
        for part, files in found.items()
    }
    return Splits(sets, names)


def images_below(name: str, folder: Path) -> list[Path]:
    """Every image file below a folder, in order of the path; others are counted in a warning.

    Args:
        name: How the warning calls the folder.
        folder: The folder.
    """
    scan = FileScan(name, folder, suffixes())
    found = scan.files(folder)
    scan.report()
    return found


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
