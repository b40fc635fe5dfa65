"""Command lines, result files and tables, the same for every benchmark.

A result is a JSON object in a file that is written whole. A long study appends one JSON line per run to a log and
skips the runs that are in it, so that a stopped study continues.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import ROOT, commit
from slicefine_pl.files.atomic import write_atomic

RESULTS = ROOT / "benchmarks" / "results"
Row = dict[str, Any]


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the docstring of the benchmark."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def result_path(text: str) -> Path:
    """The argument of ``--out``: committed results must come from committed code.

    Raises:
        argparse.ArgumentTypeError: The file lies in ``benchmarks/results`` and source files are not committed.
    """
    path = Path(text)
    if RESULTS in path.resolve().parents and (current := commit()).endswith("-dirty"):
        raise argparse.ArgumentTypeError(
            f"{text} is a committed result, and the source files differ from commit {current.removesuffix('-dirty')}. "
            f"Commit the changes first, or choose a file outside benchmarks/results."
        )
    return path


def write_result(path: Path | None, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, whole or not at all; ``None`` writes nothing."""
    if path is not None:
        write_atomic(path, json.dumps(result, indent=1) + "\n")


def read_result(path: Path) -> dict[str, Any]:
    """Read what ``write_result`` wrote."""
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def read_rows(path: Path) -> list[Row]:
    """Read a log of JSON lines; a missing file counts as empty."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class RunLog:
    """Runs of a study, one JSON line each; a run that is in the file is not repeated.

    Args:
        path: The file; made if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._commit = path, commit()

    def get(self, key: Mapping[str, Any], run: Callable[[], Row]) -> Row:
        """Return the row with these values, after running it unless the file contains it.

        The file is read each time, because another process may append other runs to it.
        """
        for row in read_rows(self._path):
            if all(row[name] == value for name, value in key.items()):
                return row
        row = {**key, **run(), "commit": self._commit}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(" · ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        return row


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    rows = [f"| {' | '.join(cells)} |" for cells in (head, *lines)]
    return "\n".join([rows[0], "|---" * len(head) + "|", *rows[1:]])


def with_spread(value: Mapping[str, float], spec: str) -> str:
    """A median with its 16th and 84th percentile in brackets."""
    return f"{value['median']:{spec}} ({value['p16']:{spec}}-{value['p84']:{spec}})"
