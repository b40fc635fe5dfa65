"""Which runs a grid asks for, and which of them are done.

Answers one question: what is left to train?  The grid stands in a YAML file; what is done stands in ``runs.csv``, a run
a line, beside the settings that all of them share.

Units:  sparsity in [0, 1) · single non-zero parameters · images · loss in nats · seconds
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from slicefine_pl.cli.recipe.settings import check_yaml
from slicefine_pl.files.atomic import write_atomic
from slicefine_pl.scaling.costs import checked_positive, checked_sparsity
from slicefine_pl.scaling.runs import NEEDED

FORMS = {  # of the entries of a grid: container, numbers in it, example
    "backbones": (dict, float, "{name: 1.0e-3, other name: 2.0e-3} with learning rates"),
    "sparsities": (list, (int, float), "[0.0, 0.5, 0.75]"),
    "epochs": (list, int, "[3, 6, 12]"),
    "seeds": (list, int, "[0]"),
    "folder": (str, str, "the name of a folder"),
}
FEWEST = {  # different ones
    "backbones": NEEDED["nonzero_params"][0],
    "sparsities": NEEDED["sparsity"][0],
    "epochs": NEEDED["data"][0],
    "seeds": 1,
    "folder": 1,
}
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
Row = Mapping[str, Any]  # by the names of COLUMNS


class Point(NamedTuple):
    """One run of a grid."""

    backbone: str
    lr: float
    sparsity: float
    epochs: int
    seed: int

    def __str__(self) -> str:
        length = f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}"
        return f"{Path(self.backbone).name}, sparsity {self.sparsity:g}, {length}, seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """Every backbone at every sparsity for every number of epochs and every seed.

    Attributes:
        backbones: Names as ``--model.backbone`` takes them, each with its learning rate.
        sparsities: Shares of zeros, in [0, 1); 0 trains dense.
        epochs: Lengths of training; each is a run of its own, whose learning rate falls to zero.
        seeds: Of weights and order of the data.
        folder: Where the results lie.
    """

    backbones: dict[str, float]
    sparsities: list[float]
    epochs: list[int]
    seeds: list[int]
    folder: str

    @property
    def points(self) -> list[Point]:
        """All runs, short ones first, so that the time which is left is known early."""
        runs = product(sorted(self.epochs), self.seeds, self.backbones.items(), self.sparsities)
        return list(dict.fromkeys(Point(name, float(lr), float(s), long, seed) for long, seed, (name, lr), s in runs))


def read_grid(path: Path) -> Grid:
    """Read a grid.

    Raises:
        ValueError: The file is none, or holds no grid that a law can be fitted to.
    """
    try:
        text = path.read_text("utf-8")
        check_yaml(text)
        told = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"grid {str(path)!r} cannot be read ({' '.join(str(error).split())}); give YAML.") from error
    names = [field.name for field in fields(Grid)]
    if not isinstance(told, dict) or set(told) != set(names):
        found = ", ".join(map(str, told)) if isinstance(told, dict) else "nothing"
        raise ValueError(f"grid {str(path)!r} has {found or 'nothing'}; give exactly {', '.join(names)}.")
    for name, (kind, entry, form) in FORMS.items():
        values = told[name]
        numbers = values.values() if isinstance(values, dict) else values
        if not isinstance(values, kind) or not all(isinstance(number, entry) for number in numbers):
            raise ValueError(f"grid {str(path)!r}: {name}={values!r} has another form; write {form}.")
        if len(set(values)) < FEWEST[name]:
            raise ValueError(f"grid {str(path)!r}: {name}={values} are too few for a law; give {FEWEST[name]} or more.")
    checked_sparsity(told["sparsities"])
    checked_positive("epochs", told["epochs"], "passes over the data")
    checked_positive("learning rate", [*told["backbones"].values()], "at most about 1")
    return Grid(**told)


def read_runs(path: Path, grid: Grid) -> dict[Point, Row]:
    """What is done already; nothing where there is no file.

    Raises:
        ValueError: The file is damaged, or holds runs of another grid.
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
    records = [_record(cells) for cells in lines[1:]]
    if None in records or not content.endswith("\n"):
        line = records.index(None) if None in records else len(records) - 1
        raise ValueError(damaged.format(f"line {line + 2} is not a complete run"))
    rows = {_point(record): record for record in records if record is not None}
    if strange := [point for point in rows if point not in grid.points]:
        raise ValueError(
            f"file {str(path)!r} holds runs of another grid, such as {strange[0]}; choose another --folder, or add "
            "what is missing to this grid."
        )
    return rows


def append_run(path: Path, row: Row) -> None:
    """Add a run to the file; a process that is killed leaves the file as it was, or with the run.

    Raises:
        ValueError: Its loss is no number.
    """
    if not np.isfinite(row["loss"]):
        raise ValueError(
            f"the run {_point(row)} ended with a loss of {row['loss']}; lower the learning rate of its backbone."
        )
    lines = io.StringIO()
    writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
    if not path.exists():
        writer.writeheader()
    writer.writerow(row)
    write_atomic(path, (path.read_text("utf-8") if path.exists() else "") + lines.getvalue())


def check_settings(path: Path, settings: str) -> None:
    """Write down what all runs share, or see that it is still the same.

    Raises:
        ValueError: The runs that are there were made with other settings.
    """
    if not path.exists():
        write_atomic(path, settings)
    elif (before := path.read_text("utf-8")) != settings:
        old, new = set(before.splitlines()), set(settings.splitlines())
        one, other = (
            "; ".join(sorted(line.strip() for line in some)[:3]) or "nothing" for some in (old - new, new - old)
        )
        raise ValueError(
            f"folder {str(path.parent)!r} holds a grid of other settings ({one} there, {other} now); choose another "
            "--folder."
        )


def seconds_left(done: Mapping[Point, Row], points: list[Point]) -> float:
    """What the missing points will take, going by the runs that are done: of the same backbone where there are any."""
    pace = {each.backbone: _pace(done, each.backbone) for each in points}
    return sum(pace[each.backbone] * each.epochs for each in points if each not in done)


def _pace(done: Mapping[Point, Row], backbone: str) -> float:
    """Seconds an epoch."""
    own = [point for point in done if point.backbone == backbone] or list(done)
    return float(sum(done[point]["seconds"] for point in own)) / max(1, sum(point.epochs for point in own))


def _record(cells: list[str]) -> Row | None:
    """A line of ``runs.csv``; ``None`` if it is not complete."""
    if len(cells) != len(COLUMNS) or not all(cells):
        return None
    try:
        record = {name: kind(cell) for (name, kind), cell in zip(COLUMNS.items(), cells, strict=True)}
    except ValueError:
        return None
    return record if all(np.isfinite(value) for value in record.values() if not isinstance(value, str)) else None


def _point(row: Row) -> Point:
    return Point(*(kind(row[name]) for name, kind in Point.__annotations__.items()))
