"""Which videos a set holds, with their classes: folders, CSV files, and the official splits of UCF101 and HMDB51.

Answers: which file belongs to which split and class?  Opens no video.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from lightning.pytorch.utilities import rank_zero_warn

from slicefine_pl.data.files import FileScan, is_hidden
from slicefine_pl.data.folders import no_test_split, read_class_folders
from slicefine_pl.data.shares import FLAG, SPLITS, parse_shares
from slicefine_pl.data.tables import READERS, Table, decode, lines, read_table

SUFFIXES = (
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".m1v", ".m2ts", ".m2v", ".m4v", ".mkv",
    ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip
HELD_OUT = 10  # percent of the training groups of UCF101 and HMDB51, which have no validation split
Missing = Literal["error", "skip"]
SUFFIX = "|".join(map(re.escape, SUFFIXES))
UCF101_LINE = re.compile(rf"\s*(?:\S*/)?([^/\s]+)/([^/\s]+(?i:{SUFFIX}))(?:\s+\d+)?\s*")
HMDB51_LINE = re.compile(rf"\s*([^/\s]+(?i:{SUFFIX}))\s+([012])\s*")
SHOWN = 80  # characters of a foreign line in a message


def list_videos(root: Path, *, fold: int = 1, missing: Missing = "error", split: str | None = None) -> dict[str, Table]:
    """Find the videos of each split; ``"test"`` is absent where a set has no test split.

    What is not used is counted in a warning: hidden files, links to nowhere, linked folders, files of other types,
    empty ones, those outside class folders, and those that are in no list.

    Args:
        root: A folder that holds ``train/<class>/*.mp4`` and ``val/...``; or ``train.csv`` and ``val.csv``; or UCF101
            with ``ucfTrainTestlist``; or HMDB51 with its ``*_test_split1.txt``; or, with ``split``, ``<class>/*.mp4``.
        fold: Which of the three official splits of UCF101 or HMDB51.
        missing: Whether a listed file that does not exist raises, or is left out.
        split: Shares of train, val and test, such as ``"0.7/0.1/0.2"``, of the files of ``root/<class>/``.

    Returns:
        Per split a table whose one column holds paths.

    Raises:
        FileNotFoundError: ``root`` is none of these, or listed files do not exist.
        ValueError: A list cannot be understood, a split or a class has no video, or class folders differ between
            splits; lists may show fewer classes in one split than in another.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"data.root={str(root)!r} is not a folder; give one with train/<class>/*.mp4 and val/.")
    scan = FileScan(f"data.root={str(root)!r}", root, SUFFIXES)
    if split is not None or any(path.name.lower() == "train" and path.is_dir() for path in root.iterdir()):
        found = read_class_folders(scan, None if split is None else parse_shares(split))
        tables = {part: _table(root, files) for part, files in found.items()}
    else:
        listed = _lists(scan, fold)
        if empty := [part for part, table in listed.items() if not len(table)]:
            raise ValueError(f"{listed[empty[0]].source!r} lists no video for {empty[0]}; add some.")
        tables = {part: _present(scan, table, missing) for part, table in listed.items()}
        scan.pass_over_unused((path for table in tables.values() for path in table.columns[0]), "in no list")
    scan.report()
    if "test" not in tables:
        rank_zero_warn(no_test_split(scan.name))
    return tables


def videos_below(name: str, folder: Path) -> list[Path]:
    """Every video below a folder, by its suffix, in order of the path; other files are counted in a warning.

    Args:
        name: How the warning calls the folder.
        folder: The folder.
    """
    scan = FileScan(name, folder, SUFFIXES)
    found = scan.files(folder)
    scan.report()
    return found


def _lists(scan: FileScan, fold: int) -> dict[str, Table]:
    """The splits of a set that comes with lists."""
    root = scan.root
    if (root / "train.csv").is_file():
        files = {split: root / f"{split}.csv" for split in SPLITS if (root / f"{split}.csv").is_file()}
        scan.lists.update(files.values())
        tables = {split: _csv(scan, split) for split in files}
        if "val" not in tables:
            raise FileNotFoundError(f"{scan.name} has train.csv and no val.csv; add it, in the same form.")
        return tables
    if ucf := _visible(root, f"trainlist0{fold}.txt"):
        scan.lists.update(ucf[0].parent.glob("*.txt"))
        return _ucf101(scan, ucf[0].parent, fold)
    if hmdb := _visible(root, f"*_test_split{fold}.txt"):
        scan.lists.update(_visible(root, "*_test_split?.txt"))
        return _hmdb51(scan, hmdb, fold)
    present = sorted(path.name for path in root.iterdir())[:8]
    raise FileNotFoundError(
        f"{scan.name} has neither folders train and val nor train.csv nor the split files of UCF101 or HMDB51; it has "
        f"{present or 'nothing'}. If these are class folders, let their files be split: {FLAG}."
    )


def _visible(folder: Path, pattern: str) -> list[Path]:
    """Paths below a folder, sorted, without hidden ones and those in hidden folders."""
    found = folder.rglob(pattern)
    return sorted(path for path in found if not any(map(is_hidden, path.relative_to(folder).parts)))


def _csv(scan: FileScan, split: str) -> Table:
    """``path,label`` with a header; Kinetics' own annotations; or lines of ``path label`` without a header."""
    root = scan.root
    path = root / f"{split}.csv"
    head = (lines(decode(path)) or [""])[0]
    names = [name.strip().strip('"') for name in head.split(",")]
    if {"youtube_id", "time_start", "time_end", "label"} <= set(names):
        return _kinetics(scan, path, split)
    if {"path", "label"} <= set(names):
        table = read_table(path, ["path"], "label")
        return Table(table.source, [_below(root, table.columns[0])], table.labels, table.rows, table.unit)
    rows, numbers = [], []
    for number, line in enumerate(lines(decode(path)), start=1):
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


def _kinetics(scan: FileScan, path: Path, split: str) -> Table:
    """The official annotations: ``<id>_<start>_<end>`` below a folder of the split's name, in class folders or not."""
    root = scan.root
    listed = READERS[".csv"](path)
    places = [folder for folder in (root / split, root / "videos" / split, root / "videos") if folder.is_dir()]
    present = {file.stem: file for folder in places for file in scan.files(folder)}
    rows = []
    for number, row in zip(listed.numbers, listed.records(), strict=True):
        times = row["time_start"], row["time_end"]
        if not (row["label"].strip() and row["youtube_id"] and all(map(str.isdecimal, times))):
            told = {name: row[name] for name in ("youtube_id", "label", "time_start", "time_end")}
            raise ValueError(f"{str(path)!r}, line {number}, has {told}; give all four, times in whole seconds.")
        stem = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"
        rows.append((present.get(stem, root / split / f"{stem}.mp4"), row["label"]))
    return _table(path, rows)


def _ucf101(scan: FileScan, lists: Path, fold: int) -> dict[str, Table]:
    """Lines of ``<class>/v_<class>_g<group>_c<clip>.avi``; clips of one group stay together."""
    find = _finder(scan, "UCF101")

    def rows(name: str) -> list[tuple[Path, str]]:
        entries = _fields(lists / name, UCF101_LINE, "'<class>/<video>.avi', and the number of the class or not")
        return [(find(label, file), label) for label, file in entries]

    train, val = _hold_out(rows(f"trainlist0{fold}.txt"), lambda path: path.stem.rsplit("_c", 1)[0])
    test = rows(f"testlist0{fold}.txt")
    return {"train": _table(lists, train), "val": _table(lists, val), "test": _table(lists, test)}


def _hmdb51(scan: FileScan, files: Iterable[Path], fold: int) -> dict[str, Table]:
    """One file a class, lines of ``<video> 0|1|2`` for unused, train, test; clips of one film stay together."""
    find = _finder(scan, "HMDB51")
    rows: dict[str, list[tuple[Path, str]]] = {"1": [], "2": [], "0": []}
    for file in files:
        name = file.name.removesuffix(f"_test_split{fold}.txt")
        for entry, use in _fields(file, HMDB51_LINE, "'<video>.avi' and 0, 1 or 2, for unused, train or test"):
            rows[use].append((find(name, entry), name))
    source = Path(next(iter(files))).parent
    train, val = _hold_out(rows["1"], lambda path: re.sub(r"_\w+_\w+_\w+_\w+_\w+_\d+$", "", path.stem))
    return {"train": _table(source, train), "val": _table(source, val), "test": _table(source, rows["2"])}


def _fields(file: Path, pattern: re.Pattern[str], allowed: str) -> list[tuple[str, ...]]:
    """What ``pattern`` picks out of each line that is not empty."""
    if not file.is_file():
        raise FileNotFoundError(f"{str(file)!r} does not exist; unpack all lists of the set.")
    rows = []
    for number, line in enumerate(lines(decode(file)), start=1):
        found = pattern.fullmatch(line)
        if found is None and line.strip():
            raise ValueError(f"{str(file)!r}, line {number}, is {line[:SHOWN]!r}; a line holds {allowed}.")
        rows += [] if found is None else [found.groups()]
    return rows


def _finder(scan: FileScan, name: str) -> Callable[[str, str], Path]:
    """A function from class and file name to the path: in a folder of the class, or else anywhere below the root."""
    files = scan.files(scan.root)
    if not files:
        raise FileNotFoundError(f"{scan.name} has the lists of {name} but no videos; unpack them there.")
    anywhere = {path.name: path for path in files}
    in_class = {(path.parent.name, path.name): path for path in files}
    return lambda label, file: in_class.get((label, file)) or anywhere.get(file) or scan.root / label / file


def _hold_out(
    rows: list[tuple[Path, str]], group: Callable[[Path], str]
) -> tuple[list[tuple[Path, str]], list[tuple[Path, str]]]:
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
    return [str(root / path) for path in paths]  # an absolute path stays as it is


def _present(scan: FileScan, table: Table, missing: Missing) -> Table:
    """Refuse, or leave out, files that do not exist."""
    there = [row for row, path in enumerate(table.columns[0]) if Path(path).is_file()]
    absent = sorted(set(range(len(table))) - set(there))
    if absent and (missing == "error" or not there):
        raise FileNotFoundError(
            f"{table.source!r} lists {len(absent)} of {len(table)} videos that do not exist, such as "
            f"{table.columns[0][absent[0]]!r} ({table.unit} {table.rows[absent[0]]}); fetch them, or set "
            "--data.missing skip to go on without."
        )
    scan.pass_over("listed, but not there", (Path(table.columns[0][row]) for row in absent))
    return table.select(there)
