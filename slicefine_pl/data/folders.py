"""Class folders: ``root/{train,val,test}/<class>/*``, or ``root/<class>/*`` to be split.

Answers: which files and which class does each split have?  Knows nothing of images or videos: a ``FileScan`` says which
files count.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from slicefine_pl.data.files import FileScan
from slicefine_pl.data.shares import FLAG, SPLITS, share_out

FOLDERS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
Files = list[tuple[Path, str]]  # with the name of the class


def read_class_folders(scan: FileScan, shares: Sequence[float] | None = None) -> dict[str, Files]:
    """Find the files of each split, in order of class and path; without a folder for test there is no ``"test"``.

    Args:
        scan: Of the root; it counts what is not used.
        shares: Of train, val and test, where the root itself holds the class folders; ``None`` where it holds a folder
            for each split.

    Raises:
        FileNotFoundError: There is no folder for train or val, or more than one for a split.
        ValueError: A split has no classes or other ones than ``train``, a class has no files, or ``shares`` are given
            for a root that is split already.
    """
    return _split_folders(scan) if shares is None else _shared_out(scan, shares)


def no_test_split(name: str) -> str:
    """Say that there is nothing to test on, and what to do."""
    return (
        f"{name} has no test split, so there is no test score, only that of val. Add a folder (or list) named test, or "
        f"put all class folders into one folder, give it as --data.root, and let it be split: {FLAG}."
    )


def _split_folders(scan: FileScan) -> dict[str, Files]:
    folders, files = scan.entries(scan.root)
    splits = {split: _find(scan, split, folders) for split in SPLITS}
    for folder in set(folders) - set(splits.values()):
        files += scan.files(folder)
    scan.pass_over("outside the folders train, val and test", files)
    found = {split: _classes(scan, folder) for split, folder in splits.items() if folder is not None}
    for split, classes in found.items():
        _check_same(scan.name, split, set(classes), set(found["train"]))
    return {
        split: [(path, name) for name, paths in classes.items() for path in paths] for split, classes in found.items()
    }


def _shared_out(scan: FileScan, shares: Sequence[float]) -> dict[str, Files]:
    names = {path.name.lower() for path in scan.entries(scan.root)[0]}
    if "train" in names and names & {*FOLDERS["val"], *FOLDERS["test"]}:
        raise ValueError(
            f"{scan.name} is split already: it holds {sorted(names)[:8]}. Leave out data.split; or give the one folder "
            f"whose class folders are to be split, as in --data.root {scan.root / 'train'} {FLAG}."
        )
    found: dict[str, Files] = {split: [] for split in SPLITS}
    for name, paths in _classes(scan, scan.root).items():
        for split, some in share_out(paths, shares, f"class folder {str(scan.root / name)!r}").items():
            found[split] += [(path, name) for path in some]
    return found


def _find(scan: FileScan, split: str, folders: Sequence[Path]) -> Path | None:
    found = [folder for folder in folders if folder.name.lower() in FOLDERS[split]]
    if len(found) == 1 or (split == "test" and not found):
        return next(iter(found), None)
    present = sorted(folder.name for folder in folders)[:8]
    train = next((folder for folder in folders if folder.name.lower() == "train"), None)
    whole = f"; or split the files of train: --data.root {train} {FLAG}"
    flat = f"; or, if these are classes, split their files: {FLAG}"
    raise FileNotFoundError(
        f"{scan.name} needs exactly one folder {' or '.join(FOLDERS[split])}; it has {present or 'no folders'}. Add or "
        f"rename it{'' if found or not folders else flat if train is None else whole}."
    )


def _classes(scan: FileScan, folder: Path) -> Mapping[str, list[Path]]:
    """Files by the class folder that they are in, at any depth."""
    folders, strays = scan.entries(folder)
    scan.pass_over("outside a class folder", strays)
    if not folders:
        raise ValueError(
            f"folder {str(folder)!r} has no class folders; put the files of each class into one, "
            "or rename the folder if its files have no labels."
        )
    classes = {each.name: scan.files(each) for each in folders}
    if empty := [name for name, files in classes.items() if not files]:
        inside = sorted(path.name for path in (folder / empty[0]).iterdir())[:3]
        state = f"has no usable files, only {inside}" if inside else "is empty"
        raise ValueError(
            f"class folder {str(folder / empty[0])!r} {state}; put some in ({' '.join(scan.suffixes)}), or remove the "
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
