"""The finished runs of a grid: ``runs.csv``, and the settings that all runs share.

Units:  sparsity in [0, 1) · single non-zero parameters · images · loss in nats · seconds
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slicefine_pl.cli.grid.plan import Grid, GridPoint
from slicefine_pl.files.atomic import write_atomic

COLUMNS: dict[str, type] = {
    "sparsity": float,
    "nonzero_params": int,
    "data": int,
    "loss": float,
    "seconds": float,
    "backbone": str,
    "lr": float,
    "epochs": int,
    "seed": int,
}
RunRecord = Mapping[str, Any]  # one value for each of COLUMNS


def read_finished_runs(path: Path, grid: Grid) -> dict[GridPoint, RunRecord]:
    """Read the finished runs.

    Returns:
        The runs by their point; empty if the file does not exist.

    Raises:
        ValueError: The file is damaged, or contains runs of another grid.
    """
    if not path.exists():
        return {}
    damaged = f"file {str(path)!r} is damaged ({{}}); repair or delete it: missing runs are trained again."
    try:
        content = path.read_text("utf-8")
        lines = [*csv.reader(content.splitlines(), strict=True)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(damaged.format(error)) from error
    if lines[:1] != [[*COLUMNS]]:
        raise ValueError(damaged.format(f"its columns are {', '.join(lines[0])}" if lines else "it is empty"))
    records = [_parse(cells) for cells in lines[1:]]
    if None in records or not content.endswith("\n"):
        line = records.index(None) if None in records else len(records) - 1
        raise ValueError(damaged.format(f"line {line + 2} is not a complete run"))
    runs = {_point(record): record for record in records if record is not None}
    if foreign := [point for point in runs if point not in grid.points]:
        raise ValueError(
            f"file {str(path)!r} contains runs of another grid, such as {foreign[0]}; choose another --folder, or add "
            "what is missing to this grid."
        )
    return runs


def append_run(path: Path, run: RunRecord) -> None:
    """Add a run to the file, atomically: if the process is killed, the file is complete with or without the run.

    Raises:
        ValueError: The loss of the run is not a finite number.
    """
    if not np.isfinite(run["loss"]):
        raise ValueError(
            f"the run {_point(run)} ended with a loss of {run['loss']}; lower the learning rate of its backbone."
        )
    lines = io.StringIO()
    writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
    if not path.exists():
        writer.writeheader()
    writer.writerow(run)
    write_atomic(path, (path.read_text("utf-8") if path.exists() else "") + lines.getvalue())


def check_settings(path: Path, settings: str) -> None:
    """Write the settings that all runs share, or check that they have not changed.

    Args:
        path: The file.
        settings: The settings, as YAML.

    Raises:
        ValueError: The existing runs were made with other settings.
    """
    if not path.exists():
        write_atomic(path, settings)
    elif (before := path.read_text("utf-8")) != settings:
        old, new = set(before.splitlines()), set(settings.splitlines())
        there, now = (
            "; ".join(sorted(line.strip() for line in some)[:3]) or "nothing" for some in (old - new, new - old)
        )
        raise ValueError(
            f"folder {str(path.parent)!r} contains a grid with other settings ({there} there, {now} now); choose "
            "another --folder."
        )


def seconds_left(finished: Mapping[GridPoint, RunRecord], points: list[GridPoint]) -> float:
    """Estimate the duration of the missing runs from the finished ones, if possible those of the same backbone."""
    pace = {point.backbone: _pace(finished, point.backbone) for point in points}
    return sum(pace[point.backbone] * point.epochs for point in points if point not in finished)


def _pace(finished: Mapping[GridPoint, RunRecord], backbone: str) -> float:
    """Seconds per epoch."""
    own = [point for point in finished if point.backbone == backbone] or list(finished)
    return float(sum(finished[point]["seconds"] for point in own)) / max(1, sum(point.epochs for point in own))


def _parse(cells: list[str]) -> RunRecord | None:
    """A line of the file; ``None`` if it is not complete."""
    if len(cells) != len(COLUMNS) or not all(cells):
        return None
    try:
        record = {name: kind(cell) for (name, kind), cell in zip(COLUMNS.items(), cells, strict=True)}
    except ValueError:
        return None
    return record if all(np.isfinite(value) for value in record.values() if not isinstance(value, str)) else None


def _point(run: RunRecord) -> GridPoint:
    return GridPoint(*(kind(run[name]) for name, kind in GridPoint.__annotations__.items()))
