"""Files below a folder: which ones a data set uses, and which ones it passes over.

Answers: where are the files of known types, and what else is there?  Reads no file.  Every file that is found is either
returned or counted under the reason why it is not used, and ``report`` warns about those once.
"""

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

HIDDEN = "hidden or left by the system"
DANGLING = "link to nowhere"
LINKED = "linked folder, not followed"
SPECIAL = "neither file nor folder"
CLOSED = "cannot be looked at"
UNKNOWN = "unknown type"
EMPTY = "empty"
JUNK = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information"}
EXAMPLES = 3  # paths that the warning shows for each reason
KINDS = 8  # unknown suffixes that it counts one by one


class FileScan:
    """Find files by their suffix, and keep account of all others.

    Args:
        name: How messages call the folder, such as ``"data.root='/data/birds'"``.
        root: The folder; messages give paths relative to it.
        suffixes: Suffixes of the files to use, lower case, with the dot.
    """

    def __init__(self, name: str, root: Path, suffixes: Collection[str]) -> None:
        self.name = name
        self.root = root
        self.suffixes = tuple(suffixes)
        self.passed: dict[str, set[Path]] = {}
        self.lists: set[Path] = set()  # files that describe the set: neither used nor passed over

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Return the visible folders (linked ones too) and the usable files directly in a folder, sorted."""
        folders: list[Path] = []
        files: list[Path] = []
        try:
            found = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            self.pass_over(CLOSED, [folder])
            found = []
        for entry in found:
            path = Path(entry.path)
            if is_hidden(entry.name):
                self.pass_over(HIDDEN, _all_below(path))
            elif entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and path.is_dir()):
                folders.append(path)
            elif path in self.lists:
                continue
            elif reason := self._reason(entry):
                self.pass_over(reason, [path])
            else:
                files.append(path)
        return folders, files

    def files(self, folder: Path) -> list[Path]:
        """Return the usable files below a folder, at any depth, sorted by their path."""
        folders, files = self.entries(folder)
        for each in folders:
            if each.is_symlink():
                self.pass_over(LINKED, [each])
            else:
                files += self.files(each)
        return sorted(files)

    def pass_over(self, reason: str, paths: Iterable[Path]) -> None:
        """Count files that are not used."""
        self.passed.setdefault(reason, set()).update(paths)

    def pass_over_unused(self, used: Iterable[str], reason: str) -> None:
        """Count all other files below the root, and linked folders in which no used file is.

        Args:
            used: Paths of the files that are used.
            reason: Why those with a known suffix are not.
        """
        known = set(map(os.path.abspath, used))
        others = [path for path in self.files(self.root) if os.path.abspath(path) not in known]
        if others:  # links may lead to the same file
            real = set(map(os.path.realpath, known))
            self.pass_over(reason, (path for path in others if os.path.realpath(path) not in real))
        parents = _parents(known)
        self.passed[LINKED] = {path for path in self.passed.get(LINKED, ()) if os.path.abspath(path) not in parents}

    def report(self) -> None:
        """Warn about everything that was passed over, once: counts and examples by reason."""
        groups = {reason: sorted(paths) for reason, paths in self.passed.items() if paths}
        if not groups:
            return
        lines = [f"{reason}: {len(paths)} ({self._kinds(reason, paths)}{self._some(paths)})"
                 for reason, paths in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))]  # fmt: skip
        if UNKNOWN in groups:
            lines.append(f"known types: {' '.join(self.suffixes)}")
        total = sum(map(len, groups.values()))
        rank_zero_warn("\n  ".join([f"{self.name}: files passed over: {total}", *lines]))

    def _reason(self, entry: os.DirEntry[str]) -> str | None:
        """Why something that is not a folder cannot be used."""
        try:
            about = entry.stat()
        except OSError:
            return DANGLING if entry.is_symlink() else CLOSED
        if not stat.S_ISREG(about.st_mode):
            return SPECIAL  # to open a pipe would wait for ever
        if os.path.splitext(entry.name)[1].lower() not in self.suffixes:
            return UNKNOWN
        return None if about.st_size else EMPTY

    def _some(self, paths: list[Path]) -> str:
        shown = ", ".join(repr(os.path.relpath(path, self.root)) for path in paths[:EXAMPLES])
        return f"such as {shown}" if len(paths) > EXAMPLES else shown

    def _kinds(self, reason: str, paths: list[Path]) -> str:
        if reason != UNKNOWN:
            return ""
        counts = Counter(path.suffix.lower() or "no suffix" for path in paths).most_common(KINDS)
        return f"{', '.join(f'{suffix} {count}' for suffix, count in counts)}; "


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or one that a system leaves beside the user's files."""
    return name.startswith(".") or name.lower() in JUNK


def _all_below(path: Path) -> list[Path]:
    """A file itself, or every file of a folder."""
    if path.is_symlink() or not path.is_dir():
        return [path]
    return [Path(folder, name) for folder, _, names in os.walk(path) for name in names]


def _parents(paths: Iterable[str]) -> set[str]:
    """Every folder above some absolute paths."""
    found: set[str] = set()
    for path in paths:
        while (folder := os.path.dirname(path)) not in found:
            found.add(folder)
            path = folder
    return found
