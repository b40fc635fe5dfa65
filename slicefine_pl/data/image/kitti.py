"""KITTI as VTAB asks it: how far is the closest vehicle?

Answers: which of four classes does a street scene have, and which scenes are of one drive?

Torchvision serves KITTI's 7,481 labelled images, but not which drive each was taken on: frames of one drive look alike,
and only the folder ``mapping`` of KITTI's development kit, ``devkit_object.zip``, tells them apart.

Source:  google-research/task_adaptation, data/kitti.py (task ``closest_vehicle_distance``), and tensorflow_datasets,
kitti 3.1.0 (test and validation part: a tenth of the drives each), both read for this file.
"""

from bisect import bisect_left
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slicefine_pl.data.files import FileScan
from slicefine_pl.data.image.decoding import read_rgb, suffixes

if TYPE_CHECKING:
    from PIL.Image import Image

CLASSES = ["up to 8 m", "8 to 20 m", "over 20 m", "no vehicle"]
METRES = (8.0, 20.0, 999.0)  # a class begins above its limit
NO_VEHICLE = 1000.0
VEHICLES = {"Car", "Van", "Truck"}


class ClosestVehicle:
    """Images of torchvision's ``Kitti`` in order of their names, each with the class of its closest vehicle.

    Torchvision takes whatever lies in its folder of images; what is not an image is passed over with a warning.

    Args:
        dataset: The training part, ``datasets.Kitti(root)``.

    Raises:
        ValueError: A label file is not there, or not of KITTI's form.
    """

    classes = CLASSES

    def __init__(self, dataset: Any) -> None:
        images = {path for folder in {Path(each).parent for each in dataset.images} for path in _images(folder)}
        found = zip(map(Path, dataset.images), map(Path, dataset.targets), strict=True)
        pairs = sorted(pair for pair in found if pair[0] in images)  # torchvision's order is the disk's
        self._paths = [image for image, _ in pairs]
        self.targets = [closest_vehicle(label) for _, label in pairs]

    def __getitem__(self, row: int) -> "tuple[Image, int]":
        """Return the image and its class."""
        return read_rgb(self._paths[row]), self.targets[row]


def _images(folder: Path) -> list[Path]:
    scan = FileScan(f"folder {str(folder)!r}", folder, suffixes())
    folders, images = scan.entries(folder)
    for each in folders:
        scan.pass_over("in a folder within", scan.files(each))
    scan.report()
    return images


def closest_vehicle(path: Path) -> int:
    """Return the class of a label file: by the smallest depth, in metres, of its cars, vans and trucks.

    Raises:
        ValueError: It cannot be read, or a line is not of KITTI's form: 15 values, type first and depth as the 14th.
    """
    try:
        lines = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip()]
        depths = [float(line[13]) for line in lines if line[0] in VEHICLES]
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(
            f"label file {str(path)!r} is none of KITTI's ({error}); fetch the label files anew."
        ) from error
    return bisect_left(METRES, min([*depths, NO_VEHICLE]))


def parts_by_drive(mapping: Path, images: int) -> dict[str, list[int]] | None:
    """Share the images out as tensorflow_datasets does, every drive into one part.

    Args:
        mapping: Folder with ``train_rand.txt``, for each image the number of its line in ``train_mapping.txt``, which
            tells date, drive and frame.
        images: How many there are.

    Returns:
        Rows of ``"train"``, ``"val"`` and ``"test"``; ``None`` if there is no such folder.

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
            f"folder {str(mapping)!r} is none of KITTI's ({error}); unpack it anew, or remove it."
        ) from error
    if len(drive) != images:
        raise ValueError(
            f"folder {str(mapping)!r} maps {len(drive)} images, and there are {images}; complete them, or remove it."
        )
    left, tenth, chance = sorted(set(drive)), max(1, len(set(drive)) // 10), np.random.RandomState(123)
    parts: dict[str, list[int]] = {}
    for split in ("test", "val"):
        chosen = {str(each) for each in chance.choice(left, tenth, replace=False)}
        parts[split] = [row for row, each in enumerate(drive) if each in chosen]
        left = [each for each in left if each not in chosen]
    return {**parts, "train": [row for row, each in enumerate(drive) if each in set(left)]}
