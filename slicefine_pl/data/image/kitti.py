"""The VTAB task on KITTI: how far away is the closest vehicle, as one of four classes.

Torchvision provides the 7,481 labeled images of KITTI, but not the drive that each image was taken on. Frames of one
drive look alike, so no drive may be in two splits. Only the folder ``mapping`` of KITTI's development kit,
``devkit_object.zip``, contains the drives.

Source:  google-research/task_adaptation, data/kitti.py (task ``closest_vehicle_distance``), and tensorflow_datasets,
kitti 3.1.0 (test and validation: a tenth of the drives each).
"""

from bisect import bisect_left
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slicefine_pl.data.folders.scanner import FileScanner
from slicefine_pl.data.image.decoding import read_rgb, suffixes

if TYPE_CHECKING:
    from PIL.Image import Image

CLASSES = ["up to 8 m", "8 to 20 m", "over 20 m", "no vehicle"]
LIMITS = (8.0, 20.0, 999.0)  # upper limits of the first three classes, in meters
NO_VEHICLE = 1000.0  # larger than any limit
VEHICLES = {"Car", "Van", "Truck"}


class ClosestVehicleDataset:
    """Images of torchvision's ``Kitti``, sorted by name, with the class of the closest vehicle.

    Torchvision uses every file in its image folder. Here, files that are not images are ignored with a warning.

    Args:
        dataset: The training split, ``datasets.Kitti(root)``.

    Raises:
        ValueError: A label file is missing, or has another format than KITTI's.
    """

    classes = CLASSES

    def __init__(self, dataset: Any) -> None:
        images = {path for folder in {Path(each).parent for each in dataset.images} for path in _images(folder)}
        found = zip(map(Path, dataset.images), map(Path, dataset.targets), strict=True)
        pairs = sorted(pair for pair in found if pair[0] in images)  # torchvision keeps the order of the disk
        self._paths = [image for image, _ in pairs]
        self.targets = [closest_vehicle(label) for _, label in pairs]

    def __getitem__(self, row: int) -> "tuple[Image, int]":
        """Return the image and its class."""
        return read_rgb(self._paths[row]), self.targets[row]


def _images(folder: Path) -> list[Path]:
    scanner = FileScanner(f"folder {str(folder)!r}", folder, suffixes())
    folders, images = scanner.entries(folder)
    for each in folders:
        scanner.ignore("in a folder within", scanner.files(each))
    scanner.report()
    return images


def closest_vehicle(path: Path) -> int:
    """Return the class of a label file: the smallest depth, in meters, of its cars, vans and trucks.

    Raises:
        ValueError: The file cannot be read, or a line does not consist of 15 values, with the type as the first and the
            depth as the 14th.
    """
    try:
        lines = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip()]
        depths = [float(line[13]) for line in lines if line[0] in VEHICLES]
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(
            f"label file {str(path)!r} is not one of KITTI's ({error}); download the label files again."
        ) from error
    return bisect_left(LIMITS, min([*depths, NO_VEHICLE]))


def split_by_drive(mapping: Path, images: int) -> dict[str, list[int]] | None:
    """Split the images as tensorflow_datasets does, so that each drive is in one split.

    Args:
        mapping: Folder with two files. For each image, ``train_rand.txt`` contains the number of its line in
            ``train_mapping.txt``, and this line contains date, drive and frame.
        images: Number of images.

    Returns:
        Rows of ``"train"``, ``"val"`` and ``"test"``; ``None`` if the folder does not exist.

    Raises:
        ValueError: The files are damaged, or belong to other images.
    """
    if not mapping.is_dir():
        return None
    try:
        places = [int(place) - 1 for place in (mapping / "train_rand.txt").read_text("utf-8").split(",")]
        lines = (mapping / "train_mapping.txt").read_text("utf-8").splitlines()
        drive = [lines[place].split(" ")[1] for place in places]
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(
            f"folder {str(mapping)!r} is not KITTI's own ({error}); unpack it again, or remove it."
        ) from error
    if len(drive) != images:
        raise ValueError(
            f"folder {str(mapping)!r} maps {len(drive)} images, and there are {images}; complete them, or remove it."
        )
    drives, tenth, random = sorted(set(drive)), max(1, len(set(drive)) // 10), np.random.RandomState(123)
    parts: dict[str, list[int]] = {}
    for split in ("test", "val"):
        chosen = {str(each) for each in random.choice(drives, tenth, replace=False)}
        parts[split] = [row for row, each in enumerate(drive) if each in chosen]
        drives = [each for each in drives if each not in chosen]
    return {**parts, "train": [row for row, each in enumerate(drive) if each in set(drives)]}
