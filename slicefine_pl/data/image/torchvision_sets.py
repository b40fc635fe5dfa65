"""Datasets of torchvision by name, and the few-label protocol VTAB-1k on them.

Splits of a torchvision dataset:

- Without a validation split, a tenth of the training split is held out.
- Without a test split, the training split is divided 70/10/20.

VTAB-1k uses 800 images for training, 200 for validation and the whole test split. The original protocol takes the first
images in the order of tensorflow_datasets. Here ``stratified_order`` chooses them, with seed 0 and every class in its
proportion. Caltech101, EuroSAT and KITTI have no test split in torchvision. Their test images are chosen here, unless
KITTI's development kit is present.

Source:  Zhai et al., A Large-scale Study of Representation Learning with the Visual Task Adaptation Benchmark,
arXiv:1910.04867.
"""

import urllib.error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from slicefine_pl.data.folders.scanner import FileScanner
from slicefine_pl.data.image.datasets import LibraryImages, Splits, stratified_order
from slicefine_pl.data.image.decoding import read_rgb, suffixes
from slicefine_pl.data.image.kitti import ClosestVehicleDataset, split_by_drive

SplitRows = dict[str, list[int]]  # rows of "train", "val" and "test"
SplitArguments = Mapping[str, Any] | None  # arguments that select a split of a dataset; None if it has no such split


@dataclass(frozen=True)
class TorchvisionLayout:
    """How torchvision provides a dataset.

    Attributes:
        train: Arguments for the training split.
        val: Arguments for the validation split.
        test: Arguments for the test split.
        labels: Name of the attribute with the labels. ``None`` reads them one by one, which takes minutes.
    """

    train: SplitArguments
    val: SplitArguments
    test: SplitArguments
    labels: str | None


def _splits(*names: str | None, labels: str | None) -> TorchvisionLayout:
    train, val, test = ({"split": name} if name else None for name in names)
    return TorchvisionLayout(train, val, test, labels)


SETS = {
    "Caltech101": TorchvisionLayout({}, None, None, "y"),
    "CIFAR10": TorchvisionLayout({"train": True}, None, {"train": False}, "targets"),
    "CIFAR100": TorchvisionLayout({"train": True}, None, {"train": False}, "targets"),
    "DTD": _splits("train", "val", "test", labels="_labels"),
    "EuroSAT": TorchvisionLayout({"loader": read_rgb}, None, None, "targets"),
    "FashionMNIST": TorchvisionLayout({"train": True}, None, {"train": False}, "targets"),
    "FGVCAircraft": _splits("train", "val", "test", labels="_labels"),
    "Flowers102": _splits("train", "val", "test", labels="_labels"),
    "Food101": _splits("train", None, "test", labels="_labels"),
    "Kitti": TorchvisionLayout({}, None, None, "targets"),
    "MNIST": TorchvisionLayout({"train": True}, None, {"train": False}, "targets"),
    "OxfordIIITPet": _splits("trainval", None, "test", labels="_labels"),
    "PCAM": _splits("train", "val", "test", labels=None),
    "STL10": _splits("train", None, "test", labels="labels"),
    "SVHN": _splits("train", None, "test", labels="labels"),
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
    "retinopathy": "torchvision does not have Diabetic Retinopathy; download it, put its images into "
    "DIR/{train,val,test}/{0,1,2,3,4}/ by grade, and give data.root=DIR without data.source",
}
MAPPING = Path("Kitti", "raw", "mapping")  # folder of KITTI's development kit, below root
VTAB_TRAIN, VTAB_VAL = 800, 200
CALTECH_PER_CLASS = 30  # VTAB draws the 1,000 images from these; all others are test images


def load_published(name: str, root: str | Path) -> Splits:
    """Load a published dataset. Missing files are downloaded.

    Args:
        name: ``"torchvision/<name>"`` or ``"vtab/<task>"``.
        root: Folder of the files.

    Raises:
        ValueError: The name is unknown, or the VTAB task cannot be built from torchvision.
        OSError: Files are missing and cannot be downloaded.
    """
    library, _, task = name.partition("/")
    if library == "vtab":
        if task in REFUSED:
            raise ValueError(f"source={name!r} is not available: {REFUSED[task]}.")
        known, task = VTAB, VTAB.get(task, "")
    else:
        known = {each: each for each in SETS if each != "Kitti"}  # Kitti has boxes; only VTAB makes classes of them
    if library not in ("torchvision", "vtab") or task not in known.values():
        raise ValueError(f"source={name!r} is unknown; choose 'digits', or {library}/ with one of {sorted(known)}.")
    return _vtab(name, _PublishedDataset(task, root)) if library == "vtab" else _full(_PublishedDataset(task, root))


class _PublishedDataset:
    """The splits of one torchvision dataset, with their labels."""

    def __init__(self, name: str, root: str | Path) -> None:
        self.name, self.root, self.layout = name, Path(root), SETS[name]
        self.splits = {
            split: self._open(arguments)
            for split, arguments in (("train", self.layout.train), ("val", self.layout.val), ("test", self.layout.test))
            if arguments is not None
        }
        self.labels = {split: self._labels(part) for split, part in self.splits.items()}

    def _open(self, arguments: Mapping[str, Any]) -> Any:
        from torchvision import datasets

        self.root.mkdir(parents=True, exist_ok=True)
        try:
            dataset = getattr(datasets, self.name)(str(self.root), **arguments, download=True)
        except (RuntimeError, OSError, urllib.error.URLError, ValueError, AssertionError, EOFError) as error:
            raise OSError(
                f"dataset {self.name!r} is incomplete in root={str(self.root)!r} and could not be downloaded "
                f"({' '.join(str(error).split())[:300]}); put its files there as torchvision expects them."
            ) from error
        if samples := getattr(dataset, "samples", None):  # found in class folders, not in a list
            scanner = FileScanner(f"source {self.name!r}", Path(samples[0][0]).parents[1], suffixes())
            scanner.ignore_unlisted((path for path, _ in samples), "unknown to torchvision")
            scanner.report()
        return ClosestVehicleDataset(dataset) if self.name == "Kitti" else dataset

    def _labels(self, part: Any) -> list[int]:
        if self.layout.labels is None:
            return [int(part[row][1]) for row in range(len(part))]
        return [int(label) for label in getattr(part, self.layout.labels)]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in order of their index, or their numbers if torchvision has no names."""
        names = getattr(self.splits["train"], "classes", None) or getattr(self.splits["train"], "categories", None)
        return list(names) if names else [str(label) for label in range(max(self.labels["train"]) + 1)]

    def rows(self, split: str, rows: Sequence[int]) -> LibraryImages:
        """Return some rows of a split."""
        labels = [self.labels[split][row] for row in rows]
        return LibraryImages(f"{self.name}/{split}", self.splits[split], rows, labels)

    def stratified(self, split: str, rows: Sequence[int] | None = None) -> list[int]:
        """Return the rows of a split, or some of them, in :func:`stratified_order`."""
        labels = self.labels[split]
        chosen = range(len(labels)) if rows is None else rows
        return [chosen[place] for place in stratified_order([labels[row] for row in chosen], seed=0)]

    def all(self, split: str) -> LibraryImages:
        """Return all rows of a split."""
        return self.rows(split, range(len(self.labels[split])))


def _full(found: _PublishedDataset) -> Splits:
    order = found.stratified("train")
    tenth = len(order) // 10
    if "test" not in found.splits:
        sets = {"train": order[3 * tenth :], "val": order[:tenth], "test": order[tenth : 3 * tenth]}
        return Splits({split: found.rows("train", rows) for split, rows in sets.items()}, found.class_names)
    if "val" in found.splits:
        return Splits({split: found.all(split) for split in ("train", "val", "test")}, found.class_names)
    train, val = found.rows("train", order[tenth:]), found.rows("train", order[:tenth])
    return Splits({"train": train, "val": val, "test": found.all("test")}, found.class_names)


def _vtab(name: str, found: _PublishedDataset) -> Splits:
    order = found.stratified("train")
    if "val" in found.splits:
        val = found.rows("val", found.stratified("val")[:VTAB_VAL])
    else:
        val = found.rows("train", order[VTAB_TRAIN : VTAB_TRAIN + VTAB_VAL])
    if "test" in found.splits:
        train, test = found.rows("train", order[:VTAB_TRAIN]), found.all("test")
        return Splits({"train": train, "val": val, "test": test}, found.class_names)
    rows = _drives(found) or _own_choice(name, found)
    return Splits({split: found.rows("train", some) for split, some in rows.items()}, found.class_names)


def _drives(found: _PublishedDataset) -> SplitRows | None:
    """Return KITTI's rows without a drive in two splits, or ``None`` if the development kit is missing."""
    if found.name != "Kitti":
        return None
    rows = split_by_drive(found.root / MAPPING, len(found.labels["train"]))
    if rows is None:
        return None
    train, val = found.stratified("train", rows["train"]), found.stratified("train", rows["val"])
    return {"train": train[:VTAB_TRAIN], "val": val[:VTAB_VAL], "test": rows["test"]}


def _own_choice(name: str, found: _PublishedDataset) -> SplitRows:
    """Split a dataset without a test split. Caltech101 keeps 30 images of each class, others four fifths."""
    hint = (
        f". For KITTI they are too high, because frames of one drive are in train and test; unpack its "
        f"devkit_object.zip, so that {str(found.root / MAPPING)!r} contains the drives"
    )
    rank_zero_warn(
        f"source={name!r}: torchvision has no test split for {found.name}; protocol and sizes are "
        "VTAB's, the images are not; scores are only roughly comparable with published ones"
        f"{hint if found.name == 'Kitti' else ''}."
    )
    order = found.stratified("train")
    if found.name == "Caltech101":
        pool, rest = _per_class(order, found.labels["train"], CALTECH_PER_CLASS)
        pool = found.stratified("train", pool)
    else:
        pool, rest = order[: -(len(order) // 5)], order[-(len(order) // 5) :]
    return {"train": pool[:VTAB_TRAIN], "val": pool[VTAB_TRAIN : VTAB_TRAIN + VTAB_VAL], "test": rest}


def _per_class(order: Sequence[int], labels: Sequence[int], count: int) -> tuple[list[int], list[int]]:
    """Return the first ``count`` rows of every class, and all others."""
    seen: dict[int, int] = {}
    pool: list[int] = []
    rest: list[int] = []
    for row in order:
        seen[labels[row]] = seen.get(labels[row], 0) + 1
        (pool if seen[labels[row]] <= count else rest).append(row)
    return pool, rest
