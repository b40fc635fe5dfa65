"""List the videos of a dataset with split and class: class folders, CSV files, or the lists of UCF101 and HMDB51.

No video is opened.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from lightning.pytorch.utilities import rank_zero_warn

from slicefine_pl.data.folders.class_folders import no_test_split, read_class_folders
from slicefine_pl.data.folders.hash_split import SPLIT_FLAG, SPLITS, parse_fractions
from slicefine_pl.data.folders.scanner import FileScanner, is_hidden
from slicefine_pl.data.tables.formats import READERS, read_utf8, split_lines
from slicefine_pl.data.tables.read import read_table
from slicefine_pl.data.tables.table import Table

SUFFIXES = (
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".m1v", ".m2ts", ".m2v", ".m4v", ".mkv",
    ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip
HELD_OUT = 10  # percentage of the training groups of UCF101 and HMDB51, which have no validation split
Missing = Literal["error", "skip"]
SUFFIX = "|".join(map(re.escape, SUFFIXES))
UCF101_LINE = re.compile(rf"\s*(?:\S*/)?([^/\s]+)/([^/\s]+(?i:{SUFFIX}))(?:\s+\d+)?\s*")
HMDB51_LINE = re.compile(rf"\s*([^/\s]+(?i:{SUFFIX}))\s+([012])\s*")
SHOWN = 80  # characters of a wrong line in a message


def list_videos(root: Path, *, fold: int = 1, missing: Missing = "error", split: str | None = None) -> dict[str, Table]:
    """Find the videos of each split. Without a test split there is no key ``"test"``.

    Files that are not used are counted in a warning: hidden, empty or unknown files, broken links, linked folders,
    files outside class folders, and files that are not listed.

    Layouts of ``root``:

    - ``train/<class>/*.mp4``, ``val/...`` and possibly ``test/...``
    - ``train.csv``, ``val.csv`` and possibly ``test.csv``
    - UCF101 with ``ucfTrainTestlist``
    - HMDB51 with its ``*_test_split1.txt``
    - ``<class>/*.mp4``, with ``split``

    Args:
        root: Folder of the dataset.
        fold: Official split of UCF101 or HMDB51: 1, 2 or 3.
        missing: Whether a listed file that does not exist is an error, or is skipped.
        split: Fractions of train, val and test, such as ``"0.7/0.1/0.2"``, into which the files of ``root/<class>/``
            are split.

    Returns:
        Table of each split. Its column contains paths.

    Raises:
        FileNotFoundError: ``root`` has another layout, or listed files do not exist.
        ValueError: A list cannot be parsed, a split or a class has no video, or class folders differ between splits.
            Lists may contain fewer classes in one split than in another.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"data.root={str(root)!r} is not a folder; give one with train/<class>/*.mp4 and val/.")
    scanner = FileScanner(f"data.root={str(root)!r}", root, SUFFIXES)
    if split is not None or any(path.name.lower() == "train" and path.is_dir() for path in root.iterdir()):
        found = read_class_folders(scanner, None if split is None else parse_fractions(split))
        tables = {part: _table(root, files) for part, files in found.items()}
    else:
        listed = _lists(scanner, fold)
        if empty := [part for part, table in listed.items() if not len(table)]:
            raise ValueError(f"{listed[empty[0]].source!r} lists no video for {empty[0]}; add some.")
        tables = {part: _present(scanner, table, missing) for part, table in listed.items()}
        scanner.ignore_unlisted((path for table in tables.values() for path in table.columns[0]), "not listed")
    scanner.report()
    if "test" not in tables:
        rank_zero_warn(no_test_split(scanner.name))
    return tables


def videos_below(name: str, folder: Path) -> list[Path]:
    """Return every video below a folder, by its suffix, in order of the path. Other files are counted in a warning.

    Args:
        name: How the warning refers to the folder.
        folder: The folder.
    """
    scanner = FileScanner(name, folder, SUFFIXES)
    found = scanner.files(folder)
    scanner.report()
    return found


def _lists(scanner: FileScanner, fold: int) -> dict[str, Table]:
    """Read the splits of a dataset with lists."""
    root = scanner.root
    if (root / "train.csv").is_file():
        files = {split: root / f"{split}.csv" for split in SPLITS if (root / f"{split}.csv").is_file()}
        scanner.lists.update(files.values())
        tables = {split: _csv(scanner, split) for split in files}
        if "val" not in tables:
            raise FileNotFoundError(f"{scanner.name} has train.csv and no val.csv; add it, in the same form.")
        return tables
    if ucf := _visible(root, f"trainlist0{fold}.txt"):
        scanner.lists.update(ucf[0].parent.glob("*.txt"))
        return _ucf101(scanner, ucf[0].parent, fold)
    if hmdb := _visible(root, f"*_test_split{fold}.txt"):
        scanner.lists.update(_visible(root, "*_test_split?.txt"))
        return _hmdb51(scanner, hmdb, fold)
    present = sorted(path.name for path in root.iterdir())[:8]
    raise FileNotFoundError(
        f"{scanner.name} has neither folders train and val nor train.csv nor the split files of UCF101 or HMDB51; it "
        f"has {present or 'nothing'}. If these are class folders, let their files be split: {SPLIT_FLAG}."
    )


def _visible(folder: Path, pattern: str) -> list[Path]:
    """Return the paths below a folder, sorted, without hidden ones and those in hidden folders."""
    found = folder.rglob(pattern)
    return sorted(path for path in found if not any(map(is_hidden, path.relative_to(folder).parts)))


def _csv(scanner: FileScanner, split: str) -> Table:
    """Read ``path,label`` with a header, the annotations of Kinetics, or lines of ``path label`` without a header."""
    root = scanner.root
    path = root / f"{split}.csv"
    head = (split_lines(read_utf8(path)) or [""])[0]
    names = [name.strip().strip('"') for name in head.split(",")]
    if {"youtube_id", "time_start", "time_end", "label"} <= set(names):
        return _kinetics(scanner, path, split)
    if {"path", "label"} <= set(names):
        table = read_table(path, ["path"], "label")
        return Table(table.source, [_below(root, table.columns[0])], table.labels, table.rows, table.unit)
    rows, numbers = [], []
    for number, line in enumerate(split_lines(read_utf8(path)), start=1):
        parts = [part.strip() for part in line.strip().rsplit("," if "," in line else None, 1)]
        if line.strip() and (len(parts) != 2 or not all(parts)):
            raise ValueError(
                f"{str(path)!r}, line {number}, is {line[:SHOWN]!r}; write 'path label', or a header line 'path,label'."
            )
        rows += [parts] if line.strip() else []
        numbers += [number] if line.strip() else []
    if not rows:
        raise ValueError(f"{str(path)!r} lists no video; write one 'path label' a line.")
    paths = _below(root, [row[0] for row in rows])
    return Table(str(path), [paths], [row[1] for row in rows], numbers, "line")


def _kinetics(scanner: FileScanner, path: Path, split: str) -> Table:
    """Read the annotations of Kinetics. Files are ``<split>/<id>_<start>_<end>``, in class folders or not."""
    root = scanner.root
    listed = READERS[".csv"](path)
    places = [folder for folder in (root / split, root / "videos" / split, root / "videos") if folder.is_dir()]
    present = {file.stem: file for folder in places for file in scanner.files(folder)}
    rows = []
    for number, row in zip(listed.numbers, listed.records(), strict=True):
        times = row["time_start"], row["time_end"]
        if not (row["label"].strip() and row["youtube_id"] and all(map(str.isdecimal, times))):
            found = {name: row[name] for name in ("youtube_id", "label", "time_start", "time_end")}
            raise ValueError(f"{str(path)!r}, line {number}, has {found}; give all four, times in whole seconds.")
        stem = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"
        rows.append((present.get(stem, root / split / f"{stem}.mp4"), row["label"]))
    return _table(path, rows)


def _ucf101(scanner: FileScanner, lists: Path, fold: int) -> dict[str, Table]:
    """Read lines of ``<class>/v_<class>_g<group>_c<clip>.avi``. All clips of a group are in the same split."""
    find = _finder(scanner, "UCF101")

    def rows(name: str) -> list[tuple[Path, str]]:
        entries = _fields(lists / name, UCF101_LINE, "'<class>/<video>.avi', and the number of the class or not")
        return [(find(label, file), label) for label, file in entries]

    train, val = _hold_out(rows(f"trainlist0{fold}.txt"), lambda path: path.stem.rsplit("_c", 1)[0])
    test = rows(f"testlist0{fold}.txt")
    return {"train": _table(lists, train), "val": _table(lists, val), "test": _table(lists, test)}


def _hmdb51(scanner: FileScanner, files: Iterable[Path], fold: int) -> dict[str, Table]:
    """Read one file per class, with lines ``<video> 0|1|2`` (unused, train, test). Clips of a film stay together."""
    find = _finder(scanner, "HMDB51")
    rows: dict[str, list[tuple[Path, str]]] = {"1": [], "2": [], "0": []}
    for file in files:
        name = file.name.removesuffix(f"_test_split{fold}.txt")
        for entry, use in _fields(file, HMDB51_LINE, "'<video>.avi' and 0, 1 or 2, for unused, train or test"):
            rows[use].append((find(name, entry), name))
    source = Path(next(iter(files))).parent
    train, val = _hold_out(rows["1"], lambda path: re.sub(r"_\w+_\w+_\w+_\w+_\w+_\d+$", "", path.stem))
    return {"train": _table(source, train), "val": _table(source, val), "test": _table(source, rows["2"])}


def _fields(file: Path, pattern: re.Pattern[str], allowed: str) -> list[tuple[str, ...]]:
    """Return the groups of ``pattern`` in each line that is not blank."""
    if not file.is_file():
        raise FileNotFoundError(f"{str(file)!r} does not exist; unpack all lists of the dataset.")
    rows = []
    for number, line in enumerate(split_lines(read_utf8(file)), start=1):
        found = pattern.fullmatch(line)
        if found is None and line.strip():
            raise ValueError(f"{str(file)!r}, line {number}, is {line[:SHOWN]!r}; a line contains {allowed}.")
        rows += [] if found is None else [found.groups()]
    return rows


def _finder(scanner: FileScanner, name: str) -> Callable[[str, str], Path]:
    """Return a function that finds a file by class and name: in the class folder, else anywhere below the root."""
    files = scanner.files(scanner.root)
    if not files:
        raise FileNotFoundError(f"{scanner.name} has the lists of {name} but no videos; unpack them there.")
    anywhere = {path.name: path for path in files}
    in_class = {(path.parent.name, path.name): path for path in files}
    return lambda label, file: in_class.get((label, file)) or anywhere.get(file) or scanner.root / label / file


def _hold_out(
    rows: list[tuple[Path, str]], group: Callable[[Path], str]
) -> tuple[list[tuple[Path, str]], list[tuple[Path, str]]]:
    """Split rows into train and val by a hash of their group."""
    parts: tuple[list[tuple[Path, str]], list[tuple[Path, str]]] = ([], [])
    for row in rows:
        digest = hashlib.sha256(group(row[0]).encode()).digest()
        parts[int.from_bytes(digest[:8], "big") % 100 < HELD_OUT].append(row)
    return parts


def _table(source: Path, rows: Iterable[tuple[Path, str]]) -> Table:
    pairs = list(rows)
    return Table(
        str(source),
        [[str(path) for path, _ in pairs]],
        [label for _, label in pairs],
        range(1, len(pairs) + 1),
        "video",
    )


def _below(root: Path, paths: Iterable[str]) -> list[str]:
    return [str(root / path) for path in paths]  # absolute paths stay unchanged


def _present(scanner: FileScanner, table: Table, missing: Missing) -> Table:
    """Raise an error for files that do not exist, or skip them."""
    present = [row for row, path in enumerate(table.columns[0]) if Path(path).is_file()]
    absent = sorted(set(range(len(table))) - set(present))
    if absent and (missing == "error" or not present):
        raise FileNotFoundError(
            f"{table.source!r} lists {len(absent)} of {len(table)} videos that do not exist, such as "
            f"{table.columns[0][absent[0]]!r} ({table.unit} {table.rows[absent[0]]}); download them, or set "
            "--data.missing skip to go on without."
        )
    scanner.ignore("listed, but missing", (Path(table.columns[0][row]) for row in absent))
    return table.select(present)
