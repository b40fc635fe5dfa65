"""Which videos a set holds, with their classes: folders, CSV files, and the official splits of UCF101 and HMDB51.

Answers: which file belongs to which split and class?  Opens no video.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

from slicefine_pl.data.tables import READERS, Table, decode, lines, read_table

SUFFIXES = (".mp4", ".avi", ".mkv", ".webm")
SPLITS = ("train", "val", "test")
HELD_OUT = 10  # percent of the training groups of UCF101 and HMDB51, which have no validation split
Missing = Literal["error", "skip"]
SUFFIX = "|".join(map(re.escape, SUFFIXES))
UCF101_LINE = re.compile(rf"\s*(?:\S*/)?([^/\s]+)/([^/\s]+(?i:{SUFFIX}))(?:\s+\d+)?\s*")
HMDB51_LINE = re.compile(rf"\s*([^/\s]+(?i:{SUFFIX}))\s+([012])\s*")
SHOWN = 80  # characters of a foreign line in a message


def list_videos(root: Path, *, fold: int = 1, missing: Missing = "error") -> dict[str, Table]:
    """Find the videos of each split; ``test`` is ``val`` where a set has no labelled test split.

    Args:
        root: A folder that holds ``train/<class>/*.mp4`` and ``val/...``; or ``train.csv`` and ``val.csv``; or UCF101
            with ``ucfTrainTestlist``; or HMDB51 with its ``*_test_split1.txt``.
        fold: Which of the three official splits of UCF101 or HMDB51.
        missing: Whether a listed file that does not exist raises, or is left out.

    Returns:
        Per split a table whose one column holds paths.

    Raises:
        FileNotFoundError: ``root`` is none of these, or listed files do not exist.
        ValueError: A list cannot be understood, a split or a class has no video, or class folders differ between
            splits; lists may show fewer classes in one split than in another.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"data.root={str(root)!r} is no folder; give one with train/<class>/*.mp4 and val/.")
    if (root / "train").is_dir():
        tables = {split: _folder(root / split) for split in SPLITS if (root / split).is_dir()}
        _check_classes(root, tables)
    elif (root / "train.csv").is_file():
        tables = {split: _csv(root, split) for split in SPLITS if (root / f"{split}.csv").is_file()}
    elif ucf := visible(root, f"trainlist0{fold}.txt"):
        tables = _ucf101(root, ucf[0].parent, fold)
    elif hmdb := visible(root, f"*_test_split{fold}.txt"):
        tables = _hmdb51(root, hmdb, fold)
    else:
        raise FileNotFoundError(
            f"data.root={str(root)!r} holds neither train/<class>/ folders nor train.csv nor the split files of UCF101 "
            f"or HMDB51, but {sorted(path.name for path in root.iterdir())[:8]}."
        )
    if "val" not in tables:
        raise FileNotFoundError(f"data.root={str(root)!r} has no val split beside train; add val/ or val.csv.")
    if empty := [split for split, table in tables.items() if not len(table)]:
        raise ValueError(f"{tables[empty[0]].source!r} lists no video for {empty[0]}; add some.")
    tables.setdefault("test", tables["val"])
    return {split: _present(table, missing) for split, table in tables.items()}


def visible(folder: Path, pattern: str) -> list[Path]:
    """Paths below a folder, sorted, without hidden ones (as macOS leaves: ``._*``) and what is in hidden folders."""
    found = folder.rglob(pattern)
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def videos_below(folder: Path) -> list[Path]:
    """Every video below a folder, by its suffix, in order of the path."""
    return [path for path in visible(folder, "*") if path.suffix.lower() in SUFFIXES]


def _folder(folder: Path) -> Table:
    """``<class>/*``; files with other suffixes are no videos."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise ValueError(f"folder {str(folder)!r} holds no class folders; arrange it as <class>/<video>.mp4.")
    rows = []
    for place in classes:
        videos = videos_below(place)
        if not videos:
            raise ValueError(
                f"class folder {str(place)!r} holds no video ({', '.join(SUFFIXES)}); add some or remove the folder."
            )
        rows += [(path, place.name) for path in videos]
    return _table(folder, rows)


def _check_classes(root: Path, tables: Mapping[str, Table]) -> None:
    """Refuse class folders that are in one split and not in another."""
    names = set(tables["train"].labels)
    for split, table in tables.items():
        if odd := sorted(names ^ set(table.labels)):
            where = f"in train but not in {split}" if odd[0] in names else f"in {split} but not in train"
            raise ValueError(
                f"data.root={str(root)!r} has the class {odd[0]!r} {where} ({len(odd)} such in all); every split needs "
                "the same class folders."
            )


def _csv(root: Path, split: str) -> Table:
    """``path,label`` with a header; Kinetics' own annotations; or lines of ``path label`` without a header."""
    path = root / f"{split}.csv"
    head = (lines(decode(path)) or [""])[0]
    names = [name.strip().strip('"') for name in head.split(",")]
    if {"youtube_id", "time_start", "time_end", "label"} <= set(names):
        return _kinetics(root, path, split)
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


def _kinetics(root: Path, path: Path, split: str) -> Table:
    """The official annotations: ``<id>_<start>_<end>`` below a folder of the split's name, in class folders or not."""
    listed = READERS[".csv"](path)
    places = (root / split, root / "videos" / split, root / "videos")
    present = {file.stem: file for folder in places for file in videos_below(folder)}
    rows = []
    for number, row in zip(listed.numbers, listed.records(), strict=True):
        times = row["time_start"], row["time_end"]
        if not (row["label"].strip() and row["youtube_id"] and all(map(str.isdecimal, times))):
            told = {name: row[name] for name in ("youtube_id", "label", "time_start", "time_end")}
            raise ValueError(f"{str(path)!r}, line {number}, has {told}; give all four, times in whole seconds.")
        stem = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"
        rows.append((present.get(stem, root / split / f"{stem}.mp4"), row["label"]))
    return _table(path, rows)


def _ucf101(root: Path, lists: Path, fold: int) -> dict[str, Table]:
    """Lines of ``<class>/v_<class>_g<group>_c<clip>.avi``; clips of one group stay together."""
    videos = _find_videos(root, "UCF101")

    def rows(name: str) -> list[tuple[Path, str]]:
        entries = _fields(lists / name, UCF101_LINE, "'<class>/<video>.avi', and the number of the class or not")
        return [(videos.get(file, root / label / file), label) for label, file in entries]

    train, val = _hold_out(rows(f"trainlist0{fold}.txt"), lambda path: path.stem.rsplit("_c", 1)[0])
    test = rows(f"testlist0{fold}.txt")
    return {"train": _table(lists, train), "val": _table(lists, val), "test": _table(lists, test)}


def _hmdb51(root: Path, files: Iterable[Path], fold: int) -> dict[str, Table]:
    """One file a class, lines of ``<video> 0|1|2`` for unused, train, test; clips of one film stay together."""
    videos = _find_videos(root, "HMDB51")
    rows: dict[str, list[tuple[Path, str]]] = {"1": [], "2": [], "0": []}
    for file in files:
        name = file.name.removesuffix(f"_test_split{fold}.txt")
        for entry, use in _fields(file, HMDB51_LINE, "'<video>.avi' and 0, 1 or 2, for unused, train or test"):
            rows[use].append((videos.get(entry, root / name / entry), name))
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


def _find_videos(root: Path, name: str) -> dict[str, Path]:
    found = {path.name: path for path in videos_below(root)}
    if not found:
        raise FileNotFoundError(f"data.root={str(root)!r} has the lists of {name} but no videos; unpack them there.")
    return found


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


def _present(table: Table, missing: Missing) -> Table:
    """Refuse, or leave out, files that do not exist."""
    there = [row for row, path in enumerate(table.columns[0]) if Path(path).is_file()]
    absent = sorted(set(range(len(table))) - set(there))
    if absent and (missing == "error" or not there):
        raise FileNotFoundError(
            f"{table.source!r} lists {len(absent)} of {len(table)} videos that do not exist, such as "
            f"{table.columns[0][absent[0]]!r} ({table.unit} {table.rows[absent[0]]}); fetch them, or set "
            "--data.missing skip to go on without."
        )
    return table.select(there)
