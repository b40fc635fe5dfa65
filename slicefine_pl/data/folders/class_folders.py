"""Class folders: ``root/{train,val,test}/<class>/*``, or ``root/<class>/*`` that is split here.

The functions return which files belong to each split and class. A :class:`FileScanner` decides which files are usable,
so nothing here depends on images or videos.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from slicefine_pl.data.folders.hash_split import SPLIT_FLAG, SPLITS, split_by_hash
from slicefine_pl.data.folders.scanner import FileScanner

FOLDERS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
LabeledFiles = list[tuple[Path, str]]  # path and class name


def read_class_folders(scanner: FileScanner, fractions: Sequence[float] | None = None) -> dict[str, LabeledFiles]:
    """Find the files of each split, in order of class and path. Without a test folder there is no key ``"test"``.

    Args:
        scanner: Scanner of the root. It counts the files that are not used.
        fractions: Fractions of train, val and test, if the root contains class folders. ``None`` if it contains a
            folder for each split.

    Raises:
        FileNotFoundError: A folder for train or val is missing, or a split has more than one folder.
        ValueError: A split has no classes or other ones than ``train``, a class has no files, or ``fractions`` are
            given for a root that is already split.
    """
    return _split_folders(scanner) if fractions is None else _split_classes(scanner, fractions)


def no_test_split(name: str) -> str:
    """Return a message that there is nothing to test on, and what to do."""
    return (
        f"{name} has no test split, so there is no test score, only that of val. Add a folder (or list) named test, or "
        f"put all class folders into one folder, give it as --data.root, and let it be split: {SPLIT_FLAG}."
    )


def _split_folders(scanner: FileScanner) -> dict[str, LabeledFiles]:
    folders, files = scanner.entries(scanner.root)
    splits = {split: _find(scanner, split, folders) for split in SPLITS}
    for folder in set(folders) - set(splits.values()):
        files += scanner.files(folder)
    scanner.ignore("outside the folders train, val and test", files)
    found = {split: _classes(scanner, folder) for split, folder in splits.items() if folder is not None}
    for split, classes in found.items():
        _check_same(scanner.name, split, set(classes), set(found["train"]))
    return {
        split: [(path, name) for name, paths in classes.items() for path in paths] for split, classes in found.items()
    }


def _split_classes(scanner: FileScanner, fractions: Sequence[float]) -> dict[str, LabeledFiles]:
    names = {path.name.lower() for path in scanner.entries(scanner.root)[0]}
    if "train" in names and names & {*FOLDERS["val"], *FOLDERS["test"]}:
        raise ValueError(
            f"{scanner.name} is already split: it contains {sorted(names)[:8]}. Leave out data.split; or give the one "
            f"folder whose class folders are to be split, as in --data.root {scanner.root / 'train'} {SPLIT_FLAG}."
        )
    found: dict[str, LabeledFiles] = {split: [] for split in SPLITS}
    for name, paths in _classes(scanner, scanner.root).items():
        for split, some in split_by_hash(paths, fractions, f"class folder {str(scanner.root / name)!r}").items():
            found[split] += [(path, name) for path in some]
    return found


def _find(scanner: FileScanner, split: str, folders: Sequence[Path]) -> Path | None:
    """Return the folder of a split, or ``None`` if there is no test folder."""
    found = [folder for folder in folders if folder.name.lower() in FOLDERS[split]]
    if len(found) == 1 or (split == "test" and not found):
        return next(iter(found), None)
    present = sorted(folder.name for folder in folders)[:8]
    train = next((folder for folder in folders if folder.name.lower() == "train"), None)
    split_train = f"; or split the files of train: --data.root {train} {SPLIT_FLAG}"
    split_root = f"; or, if these are classes, split their files: {SPLIT_FLAG}"
    raise FileNotFoundError(
        f"{scanner.name} needs exactly one folder {' or '.join(FOLDERS[split])}; it has {present or 'no folders'}. Add "
        f"or rename it{'' if found or not folders else split_root if train is None else split_train}."
    )


def _classes(scanner: FileScanner, folder: Path) -> Mapping[str, list[Path]]:
    """Return the files by the name of their class folder, at any depth below it."""
    folders, outside = scanner.entries(folder)
    scanner.ignore("outside a class folder", outside)
    if not folders:
        raise ValueError(
            f"folder {str(folder)!r} has no class folders; put the files of each class into one, "
            "or rename the folder if its files have no labels."
        )
    classes = {each.name: scanner.files(each) for each in folders}
    if empty := [name for name, files in classes.items() if not files]:
        present = sorted(path.name for path in (folder / empty[0]).iterdir())[:3]
        state = f"has no usable files, only {present}" if present else "is empty"
        raise ValueError(
            f"class folder {str(folder / empty[0])!r} {state}; add some ({' '.join(scanner.suffixes)}), or remove the "
            "folder from every split."
        )
    return classes


def _check_same(name: str, split: str, classes: set[str], trained: set[str]) -> None:
    if odd := sorted(classes ^ trained):
        where = f"in {split} but not in train" if odd[0] in classes else f"in train but not in {split}"
        raise ValueError(
            f"{name} has the class {odd[0]!r} {where} ({len(odd)} such in all); every split needs the same class "
            "folders."
        )
