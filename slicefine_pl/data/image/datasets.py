"""Labeled images by index: from a folder, from memory, or from torchvision.

Each class lists the images and labels of one split. Pixels are decoded when an image is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from slicefine_pl.data.folders.class_folders import no_test_split, read_class_folders
from slicefine_pl.data.folders.hash_split import parse_fractions
from slicefine_pl.data.folders.scanner import FileScanner
from slicefine_pl.data.image.decoding import as_rgb, decoded, read_rgb, suffixes
from slicefine_pl.data.tables.labels import sorted_names

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageSet(Protocol):
    """Labeled images of one split."""

    @property
    def labels(self) -> Sequence[int]:
        """Class index of each image."""

    def place(self, index: int) -> str:
        """Return how messages refer to an image: its path, or its dataset and number."""

    def read(self, index: int) -> "Image":
        """Decode an image as RGB. Raises ``UnreadableImageError``."""


@dataclass(frozen=True)
class FileImages:
    """Images in files.

    Attributes:
        paths: Paths of the images.
        labels: Class index of each image.
    """

    paths: Sequence[str]
    labels: Sequence[int]

    def place(self, index: int) -> str:
        """Return the path of an image."""
        return self.paths[index]

    def read(self, index: int) -> "Image":
        """Decode an image."""
        return read_rgb(self.paths[index])


@dataclass(frozen=True)
class ArrayImages:
    """Grayscale images in memory.

    Attributes:
        source: Name of the dataset, for messages.
        pixels: 8-bit gray values, shape ``(N, H, W)``.
        labels: Class index of each image.
    """

    source: str
    pixels: "np.ndarray[Any, np.dtype[np.uint8]]"
    labels: Sequence[int]

    def place(self, index: int) -> str:
        """Return dataset and number of an image."""
        return f"{self.source}[{index}]"

    def read(self, index: int) -> "Image":
        """Return an image as RGB."""
        from PIL import Image

        return Image.fromarray(self.pixels[index]).convert("RGB")


@dataclass(frozen=True)
class LibraryImages:
    """Some images of a torchvision dataset.

    Attributes:
        source: Name of the dataset, for messages.
        dataset: The torchvision dataset.
        rows: Indices of the images in it.
        labels: Class index of each image.
    """

    source: str
    dataset: Any
    rows: Sequence[int]
    labels: Sequence[int]

    def place(self, index: int) -> str:
        """Return dataset and index of an image."""
        return f"{self.source}[{self.rows[index]}]"

    def read(self, index: int) -> "Image":
        """Let the dataset decode an image."""
        return decoded(lambda: as_rgb(self.dataset[self.rows[index]][0]), self.place(index))


@dataclass(frozen=True)
class Splits:
    """A dataset with its splits.

    Attributes:
        sets: Images of ``"train"``, ``"val"`` and, if there is one, ``"test"``.
        names: Names of the classes, in order of their index.
    """

    sets: Mapping[str, ImageSet]
    names: Sequence[str]


def read_folder(root: str, split: str | None = None) -> Splits:
    """List the images of ``root/{train,val,test}/<class>/``, at any depth below a class.

    Files that are not used are counted in a warning: hidden, empty or unknown files, broken links, linked folders below
    a class, and files outside class folders.

    Args:
        root: The folder.
        split: Fractions of train, val and test, such as ``"0.7/0.1/0.2"``, into which the files of ``root/<class>/``
            are split.

    Raises:
        FileNotFoundError: The folder, or its ``train`` or ``val`` folder, does not exist.
        ValueError: A split has no classes or other ones than ``train``, or a class has no images.
    """
    top = Path(root).expanduser()
    if not top.is_dir():
        raise FileNotFoundError(f"data.root={root!r} is not a folder; give one with folders train, val and test.")
    scanner = FileScanner(f"data.root={root!r}", top, suffixes())
    found = read_class_folders(scanner, None if split is None else parse_fractions(split))
    scanner.report()
    if "test" not in found:
        rank_zero_warn(no_test_split(scanner.name))
    names = sorted_names(name for _, name in found["train"])
    if len(names) < 2:
        raise ValueError(f"{scanner.name} has only the class {names[0]!r}; give at least two class folders.")
    index = {name: label for label, name in enumerate(names)}
    sets = {
        part: FileImages([str(path) for path, _ in files], [index[name] for _, name in files])
        for part, files in found.items()
    }
    return Splits(sets, names)


def images_below(name: str, folder: Path) -> list[Path]:
    """Return every image file below a folder, in order of the path. Other files are counted in a warning.

    Args:
        name: How the warning refers to the folder.
        folder: The folder.
    """
    scanner = FileScanner(name, folder, suffixes())
    found = scanner.files(folder)
    scanner.report()
    return found


def stratified_order(labels: Sequence[int], seed: int) -> list[int]:
    """Order the rows so that, for every n, the first n contain every class in its proportion.

    Each class is shuffled and spread evenly over [0, 1). Rows at the same point are in random order.
    """
    generator = torch.Generator().manual_seed(seed)
    chance = torch.rand(len(labels), generator=generator, dtype=torch.float64).tolist()
    rows: dict[int, list[int]] = {}
    for row in torch.randperm(len(labels), generator=generator).tolist():
        rows.setdefault(labels[row], []).append(row)
    at = {row: (place + 0.5) / len(group) for group in rows.values() for place, row in enumerate(group)}
    return sorted(range(len(labels)), key=lambda row: (at[row], chance[row]))
