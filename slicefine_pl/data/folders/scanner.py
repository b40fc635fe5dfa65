"""Find the files of a dataset below a folder, and report the files that are not used.

No file is opened. Every file is either returned or counted under the reason why it is ignored.
"""

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

HIDDEN = "hidden or left by the system"
DANGLING = "broken link"
LINKED = "linked folder, not followed"
SPECIAL = "neither file nor folder"
CLOSED = "cannot be accessed"
UNKNOWN = "unknown type"
EMPTY = "empty"
JUNK = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information"}
EXAMPLES = 3  # paths that the warning shows for each reason
KINDS = 8  # unknown suffixes that the warning counts one by one


class FileScanner:
    """Find files by their suffix, and count all others.

    Args:
        name: How messages refer to the folder, such as ``"data.root='/data/birds'"``.
        root: The folder. Messages contain paths relative to it.
        suffixes: Suffixes of the files to use, in lower case, with the dot.

    Attributes:
        ignored: Files that are not used, by the reason.
        lists: Files that describe the dataset. They are neither returned nor counted.
    """

    def __init__(self, name: str, root: Path, suffixes: Collection[str]) -> None:
        self.name = name
        self.root = root
        self.suffixes = tuple(suffixes)
        self.ignored: dict[str, set[Path]] = {}
        self.lists: set[Path] = set()

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Return the visible folders (including linked ones) and the usable files directly in a folder, sorted."""
        folders: list[Path] = []
        files: list[Path] = []
        try:
            found = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            self.ignore(CLOSED, [folder])
            found = []
        for entry in found:
            path = Path(entry.path)
            if is_hidden(entry.name):
                self.ignore(HIDDEN, _all_below(path))
            elif entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and path.is_dir()):
                folders.append(path)
            elif path in self.lists:
                continue
            elif reason := self._reason_to_ignore(entry):
                self.ignore(reason, [path])
            else:
                files.append(path)
        return folders, files

    def files(self, folder: Path) -> list[Path]:
        """Return the usable files below a folder, at any depth, sorted by path."""
        folders, files = self.entries(folder)
        for each in folders:
            if each.is_symlink():
                self.ignore(LINKED, [each])
            else:
                files += self.files(each)
        return sorted(files)

    def ignore(self, reason: str, paths: Iterable[Path]) -> None:
        """Count files that are not used."""
        self.ignored.setdefault(reason, set()).update(paths)

    def ignore_unlisted(self, used: Iterable[str], reason: str) -> None:
        """Count all other files below the root, and linked folders that contain no used file.

        Args:
            used: Paths of the files that are used.
            reason: Why files with a known suffix are not used.
        """
        known = set(map(os.path.abspath, used))
        others = [path for path in self.files(self.root) if os.path.abspath(path) not in known]
        if others:  # links may lead to the same file
            real = set(map(os.path.realpath, known))
            self.ignore(reason, (path for path in others if os.path.realpath(path) not in real))
        parents = _parents(known)
        self.ignored[LINKED] = {path for path in self.ignored.get(LINKED, ()) if os.path.abspath(path) not in parents}

    def report(self) -> None:
        """Warn about all ignored files, with counts and examples for each reason."""
        groups = {reason: sorted(paths) for reason, paths in self.ignored.items() if paths}
        if not groups:
            return
        lines = [f"{reason}: {len(paths)} ({self._suffix_counts(reason, paths)}{self._examples(paths)})"
                 for reason, paths in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))]  # fmt: skip
        if UNKNOWN in groups:
            lines.append(f"known types: {' '.join(self.suffixes)}")
        total = sum(map(len, groups.values()))
        rank_zero_warn("\n  ".join([f"{self.name}: files ignored: {total}", *lines]))

    def _reason_to_ignore(self, entry: os.DirEntry[str]) -> str | None:
        """Return why an entry that is not a folder cannot be used, or ``None`` if it can."""
        try:
            status = entry.stat()
        except OSError:
            return DANGLING if entry.is_symlink() else CLOSED
        if not stat.S_ISREG(status.st_mode):
            return SPECIAL  # opening a pipe would wait forever
        if os.path.splitext(entry.name)[1].lower() not in self.suffixes:
            return UNKNOWN
        return None if status.st_size else EMPTY

    def _examples(self, paths: list[Path]) -> str:
        shown = ", ".join(repr(os.path.relpath(path, self.root)) for path in paths[:EXAMPLES])
        return f"such as {shown}" if len(paths) > EXAMPLES else shown

    def _suffix_counts(self, reason: str, paths: list[Path]) -> str:
        if reason != UNKNOWN:
            return ""
        counts = Counter(path.suffix.lower() or "no suffix" for path in paths).most_common(KINDS)
        return f"{', '.join(f'{suffix} {count}' for suffix, count in counts)}; "


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or is one that an operating system leaves behind."""
    return name.startswith(".") or name.lower() in JUNK


def _all_below(path: Path) -> list[Path]:
    """Return a file itself, or every file of a folder."""
    if path.is_symlink() or not path.is_dir():
        return [path]
    return [Path(folder, name) for folder, _, names in os.walk(path) for name in names]


def _parents(paths: Iterable[str]) -> set[str]:
    """Return every folder above some absolute paths."""
    found: set[str] = set()
    for path in paths:
        while (folder := os.path.dirname(path)) not in found:
            found.add(folder)
            path = folder
    return found
