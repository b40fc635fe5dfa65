"""Datasets of torchvision by name, and the few-label protocol VTAB-1k over them.

Answers: which images of a published dataset train, validate and test?

A set without a validation part gives a tenth of its training part; a set without a test part is shared out 70/10/20.
VTAB-1k takes 800 images for training, 200 for validation and the whole test part.  VTAB chooses them as the first of an
order that only tensorflow_datasets has; here ``spread`` chooses them, from seed 0, with every class in its proportion.

Source:  Zhai et al., A Large-scale Study of Representation Learning with the Visual Task Adaptation Benchmark,
arXiv:1910.04867.
"""

import urllib.error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from slicefine_pl.data.image.sets import LibraryImages, Splits, spread

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
    "EuroSAT": Layout({}, None, None, "targets"),
    "FashionMNIST": Layout({"train": True}, None, {"train": False}, "targets"),
    "FGVCAircraft": _parts("train", "val", "test", labels="_labels"),
    "Flowers102": _parts("train", "val", "test", labels="_labels"),
    "Food101": _parts("train", None, "test", labels="_labels"),
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
}
REFUSED = {
    "retinopathy": "torchvision does not have Diabetic Retinopathy",
    "kitti": "its test images are chosen by drive, which torchvision's Kitti does not tell, and neighbours in a video "
    "must not be shared out by chance",
}
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
            raise ValueError(f"source={name!r} cannot be served: {REFUSED[task]}; give its images as folders in root.")
        known, task = VTAB, VTAB.get(task, "")
    else:
        known = {each: each for each in SETS}
    if library not in ("torchvision", "vtab") or task not in SETS:
        raise ValueError(f"source={name!r} is unknown; choose 'digits', or {library}/ with one of {sorted(known)}.")
    return _thousand(name, _Published(task, root)) if library == "vtab" else _whole(name, _Published(task, root))


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
            return getattr(datasets, self.name)(str(self.root), **part, download=True)
        except (RuntimeError, OSError, urllib.error.URLError) as error:
            raise OSError(
                f"dataset {self.name!r} is not whole in root={str(self.root)!r} and could not be downloaded "
                f"({' '.join(str(error).split())[:300]}); put its files there as torchvision expects them."
            ) from error

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

    def all(self, split: str) -> LibraryImages:
        """Every row of a part."""
        return self.rows(split, range(len(self.labels[split])))


def _whole(name: str, found: _Published) -> Splits:
    order = spread(found.labels["train"], seed=0)
    tenth = len(order) // 10
    if "test" not in found.parts:
        sets = {"train": order[3 * tenth :], "val": order[:tenth], "test": order[tenth : 3 * tenth]}
        return Splits({split: found.rows("train", rows) for split, rows in sets.items()}, found.class_names)
    if "val" in found.parts:
        return Splits({split: found.all(split) for split in ("train", "val", "test")}, found.class_names)
    train, val = found.rows("train", order[tenth:]), found.rows("train", order[:tenth])
    return Splits({"train": train, "val": val, "test": found.all("test")}, found.class_names)


def _thousand(name: str, found: _Published) -> Splits:
    order = spread(found.labels["train"], seed=0)
    if "val" in found.parts:
        val = found.rows("val", spread(found.labels["val"], seed=0)[:VTAB_VAL])
    else:
        val = found.rows("train", order[VTAB_TRAIN : VTAB_TRAIN + VTAB_VAL])
    if "test" in found.parts:
        train, test = found.rows("train", order[:VTAB_TRAIN]), found.all("test")
        return Splits({"train": train, "val": val, "test": test}, found.class_names)
    rank_zero_warn(
        f"source={name!r}: torchvision has no test part for {found.name}; the protocol and the sizes are VTAB's, the "
        "images are not, so scores compare with published ones only roughly."
    )
    if found.name == "Caltech101":
        pool, rest = _per_class(order, found.labels["train"], CALTECH_PER_CLASS)
        pool = [pool[row] for row in spread([found.labels["train"][row] for row in pool], seed=0)]
    else:  # EuroSAT: a fifth is the test part
        pool, rest = order[: -(len(order) // 5)], order[-(len(order) // 5) :]
    train, val = found.rows("train", pool[:VTAB_TRAIN]), found.rows("train", pool[VTAB_TRAIN : VTAB_TRAIN + VTAB_VAL])
    return Splits({"train": train, "val": val, "test": found.rows("train", rest)}, found.class_names)


def _per_class(order: Sequence[int], labels: Sequence[int], count: int) -> tuple[list[int], list[int]]:
    """The first ``count`` rows of every class, and all others."""
    seen: dict[int, int] = {}
    pool: list[int] = []
    rest: list[int] = []
    for row in order:
        seen[labels[row]] = seen.get(labels[row], 0) + 1
        (pool if seen[labels[row]] <= count else rest).append(row)
    return pool, rest
