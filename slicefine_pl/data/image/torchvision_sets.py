"""Datasets of torchvision by name, and the few-label protocol VTAB-1k over them.

Answers: which images of a published dataset train, validate and test?

A set without a validation part gives a tenth of its training part; a set without a test part is shared out 70/10/20.
VTAB-1k takes 800 images for training, 200 for validation and the whole test part.  VTAB chooses them as the first of an
order that only tensorflow_datasets has; here ``spread`` chooses them, from seed 0, with every class in its proportion.
Caltech101, EuroSAT and KITTI have no test part in torchvision: theirs is of our own choice, unless KITTI's development
kit is there.

Source:  Zhai et al., A Large-scale Study of Representation Learning with the Visual Task Adaptation Benchmark,
arXiv:1910.04867.
"""

import urllib.error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from slicefine_pl.data.files import FileScan
from slicefine_pl.data.image.datasets import LibraryImages, Splits, spread
from slicefine_pl.data.image.decoding import read_rgb, suffixes
from slicefine_pl.data.image.kitti import ClosestVehicle, parts_by_drive

Rows = dict[str, list[int]]  # of "train", "val" and "test"
Part = Mapping[str, Any] | None  # the arguments that choose a part of a dataset; None where it has no such part


@dataclass(frozen=True)
class Layout:
    """How torchvision serves a dataset.

    Attributes:
        train: Arguments for the training part.
        val: Arguments for the validation part.
        test: Arguments for the test part.
        labels: Attribute with the labels; ``None`` reads them one by one, which takes minutes.
    """

    train: Part
    val: Part
    test: Part
    labels: str | None


def _parts(*names: str | None, labels: str | None) -> Layout:
    train, val, test = ({"split": name} if name else None for name in names)
    return Layout(train, val, test, labels)


SETS = {
    "Caltech101": Layout({}, None, None, "y"),
    "CIFAR10": Layout({"train": True}, None, {"train": False}, "targets"),
    "CIFAR100": Layout({"train": True}, None, {"train": False}, "targets"),
    "DTD": _parts("train", "val", "test", labels="_labels"),
    "EuroSAT": Layout({"loader": read_rgb}, None, None, "targets"),
    "FashionMNIST": Layout({"train": True}, None, {"train": False}, "targets"),
    "FGVCAircraft": _parts("train", "val", "test", labels="_labels"),
    "Flowers102": _parts("train", "val", "test", labels="_labels"),
    "Food101": _parts("train", None, "test", labels="_labels"),
    "Kitti": Layout({}, None, None, "targets"),
    "MNIST": Layout({"train": True}, None, {"train": False}, "targets"),
    "OxfordIIITPet": _parts("trainval", None, "test", labels="_labels"),
    "PCAM": _parts("train", "val", "test", labels=None),
    "STL10": _parts("train", None, "test", labels="labels"),
    "SVHN": _parts("train", None, "test", labels="labels"),
}
VTAB = {
    "caltech101": "Caltech101",
    "flowers102": "Flowers102",
    "pets": "OxfordIIITPet",
    "camelyon": "PCAM",
    "eurosat": "EuroSAT",
    "kitti": "Kitti",
}
REFUSED = {
    "retinopathy": "torchvision does not have Diabetic Retinopathy; fetch it, put its images into DIR/{train,val,test}/"
    "{0,1,2,3,4}/ by grade, and give data.root=DIR without data.source",
}
MAPPING = Path("Kitti", "raw", "mapping")  # of KITTI's development kit, below root
VTAB_TRAIN, VTAB_VAL = 800, 200
CALTECH_PER_CLASS = 30  # of these VTAB draws the 1,000; all other images are its test part


def load_published(name: str, root: str | Path) -> Splits:
    """Load ``"torchvision/<name>"`` or ``"vtab/<task>"``, downloading to ``root`` what is not there.

    Raises:
        ValueError: The name is unknown, or its protocol cannot be kept.
        OSError: The files are not there and cannot be downloaded.
    """
    library, _, task = name.partition("/")
    if library == "vtab":
        if task in REFUSED:
            raise ValueError(f"source={name!r} cannot be served: {REFUSED[task]}.")
        known, task = VTAB, VTAB.get(task, "")
    else:
        known = {each: each for each in SETS if each != "Kitti"}  # which has boxes, and classes in VTAB only
    if library not in ("torchvision", "vtab") or task not in known.values():
        raise ValueError(f"source={name!r} is unknown; choose 'digits', or {library}/ with one of {sorted(known)}.")
    return _thousand(name, _Published(task, root)) if library == "vtab" else _whole(_Published(task, root))


class _Published:
    """The parts of one dataset, with their labels."""

    def __init__(self, name: str, root: str | Path) -> None:
        self.name, self.root, self.layout = name, Path(root), SETS[name]
        self.parts = {
            split: self._open(part)
            for split, part in (("train", self.layout.train), ("val", self.layout.val), ("test", self.layout.test))
            if part is not None
        }
        self.labels = {split: self._labels(part) for split, part in self.parts.items()}

    def _open(self, part: Mapping[str, Any]) -> Any:
        from torchvision import datasets

        self.root.mkdir(parents=True, exist_ok=True)
        try:
            dataset = getattr(datasets, self.name)(str(self.root), **part, download=True)
        except (RuntimeError, OSError, urllib.error.URLError, ValueError, AssertionError, EOFError) as error:
            raise OSError(
                f"dataset {self.name!r} is not whole in root={str(self.root)!r} and could not be downloaded "
                f"({' '.join(str(error).split())[:300]}); put its files there as torchvision expects them."
            ) from error
        if samples := getattr(dataset, "samples", None):  # found in class folders, not listed by the set
            scan = FileScan(f"source {self.name!r}", Path(samples[0][0]).parents[1], suffixes())
            scan.pass_over_unused((path for path, _ in samples), "unknown to torchvision")
            scan.report()
        return ClosestVehicle(dataset) if self.name == "Kitti" else dataset

    def _labels(self, part: Any) -> list[int]:
        if self.layout.labels is None:
            return [int(part[row][1]) for row in range(len(part))]
        return [int(label) for label in getattr(part, self.layout.labels)]

    @property
    def class_names(self) -> list[str]:
        """Names in order of the label, or its numbers where torchvision has none."""
        names = getattr(self.parts["train"], "classes", None) or getattr(self.parts["train"], "categories", None)
        return list(names) if names else [str(label) for label in range(max(self.labels["train"]) + 1)]

    def rows(self, split: str, rows: Sequence[int]) -> LibraryImages:
        """Some rows of a part."""
        labels = [self.labels[split][row] for row in rows]
        return LibraryImages(f"{self.name}/{split}", self.parts[split], rows, labels)

    def spread(self, split: str, rows: Sequence[int] | None = None) -> list[int]:
        """Rows of a part, or some of them, so that every beginning holds each class in its proportion."""
        labels = self.labels[split]
        chosen = range(len(labels)) if rows is None else rows
        return [chosen[place] for place in spread([labels[row] for row in chosen], seed=0)]

    def all(self, split: str) -> LibraryImages:
        """Every row of a part."""
        return self.rows(split, range(len(self.labels[split])))


def _whole(found: _Published) -> Splits:
    order = found.spread("train")
    tenth = len(order) // 10
    if "test" not in found.parts:
        sets = {"train": order[3 * tenth :], "val": order[:tenth], "test": order[tenth : 3 * tenth]}
        return Splits({split: found.rows("train", rows) for split, rows in sets.items()}, found.class_names)
    if "val" in found.parts:
        return Splits({split: found.all(split) for split in ("train", "val", "test")}, found.class_names)
    train, val = found.rows("train", order[tenth:]), found.rows("train", order[:tenth])
    return Splits({"train": train, "val": val, "test": found.all("test")}, found.class_names)


def _thousand(name: str, found: _Published) -> Splits:
    order = found.spread("train")
    if "val" in found.parts:
        val = found.rows("val", found.spread("val")[:VTAB_VAL])
    else:
        val = found.rows("train", order[VTAB_TRAIN : VTAB_TRAIN + VTAB_VAL])
    if "test" in found.parts:
        train, test = found.rows("train", order[:VTAB_TRAIN]), found.all("test")
        return Splits({"train": train, "val": val, "test": test}, found.class_names)
    rows = _drives(found) or _own_choice(name, found)
    return Splits({split: found.rows("train", some) for split, some in rows.items()}, found.class_names)


def _drives(found: _Published) -> Rows | None:
    """KITTI's rows with no drive in two parts, where its development kit tells the drives."""
    if found.name != "Kitti":
        return None
    parts = parts_by_drive(found.root / MAPPING, len(found.labels["train"]))
    if parts is None:
        return None
    train, val = found.spread("train", parts["train"]), found.spread("train", parts["val"])
    return {"train": train[:VTAB_TRAIN], "val": val[:VTAB_VAL], "test": parts["test"]}


def _own_choice(name: str, found: _Published) -> Rows:
    """Rows of a set without a test part: that of Caltech101 is all but 30 of each class, of others a fifth."""
    kitti = (
        f", and for KITTI flatter, as frames of one drive train and test; unpack its devkit_object.zip, so that "
        f"{str(found.root / MAPPING)!r} tells the drives"
    )
    rank_zero_warn(
        f"source={name!r}: torchvision has no test part for {found.name}; the protocol and the sizes are VTAB's, the "
        f"images are not, so scores compare with published ones only roughly{kitti if found.name == 'Kitti' else ''}."
    )
    order = found.spread("train")
    if found.name == "Caltech101":
        pool, rest = _per_class(order, found.labels["train"], CALTECH_PER_CLASS)
        pool = found.spread("train", pool)
    else:
        pool, rest = order[: -(len(order) // 5)], order[-(len(order) // 5) :]
    return {"train": pool[:VTAB_TRAIN], "val": pool[VTAB_TRAIN : VTAB_TRAIN + VTAB_VAL], "test": rest}


def _per_class(order: Sequence[int], labels: Sequence[int], count: int) -> tuple[list[int], list[int]]:
    """The first ``count`` rows of every class, and all others."""
    seen: dict[int, int] = {}
    pool: list[int] = []
    rest: list[int] = []
    for row in order:
        seen[labels[row]] = seen.get(labels[row], 0) + 1
        (pool if seen[labels[row]] <= count else rest).append(row)
    return pool, rest
