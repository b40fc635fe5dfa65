"""``<recipe> grid``: many short runs of a recipe, and the scaling law of sparse networks that they support.

Answers one question: how does a grid become a law?  Runs what is missing, one run after the other in this process, and
writes ``runs.csv``, ``law.json`` and ``law.png`` into the grid's folder.

Source:  Frantar et al., arXiv:2309.08520, in miniature.
"""

import argparse
import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from slicefine_pl.cli.grid.plan import Grid, Point, Row, append_run, check_settings, read_grid, read_runs, seconds_left
from slicefine_pl.cli.grid.point import GridPoint, flags_of
from slicefine_pl.cli.parser import OneSentenceParser
from slicefine_pl.cli.recipe.report import RunReport
from slicefine_pl.cli.scaling.fit_law import draw, publish
from slicefine_pl.cli.scaling.model_size import parameters_of
from slicefine_pl.files.atomic import warn_on_error
from slicefine_pl.optional import optional_imports
from slicefine_pl.scaling import fit_scaling_law

VECTORS = ("sparsity", "nonzero_params", "data", "loss")  # of a law
TYPICAL = Point(backbone="any", lr=1.0, sparsity=0.5, epochs=1, seed=0)  # what all runs share does not depend on it
TALKERS = ("lightning.pytorch", "lightning.fabric")
Make = Callable[[RunReport, Point, Sequence[str]], GridPoint]


def run_grid(arguments: Sequence[str], grid_file: Path, report: RunReport, make: Make) -> None:
    """Train every point of a grid that is not done, and fit the law.

    Args:
        arguments: Of the command line, after ``grid``.
        grid_file: The recipe's own grid.
        report: Told of each run; between runs it stands at no step, so that an error there is the user's.
        make: Makes a run of a point and of flags for ``fit``.

    Raises:
        ValueError: What is asked for is not possible, or the folder holds something else.
    """
    parsed, settings = _parser(grid_file).parse_known_args(arguments)
    grid = read_grid(parsed.grid)
    folder = Path(parsed.folder or grid.folder)
    _check_flags(settings)
    for backbone in grid.backbones:
        parameters_of(backbone)  # one that is not known is told now, not in an hour
    done = read_runs(folder / "runs.csv", grid)
    folder.mkdir(parents=True, exist_ok=True)
    with _quiet():
        check_settings(folder / "settings.yaml", make(report, TYPICAL, settings).settings)
        _train(grid, done, folder, lambda point: make(report, point, settings), report)
    _conclude(folder, read_runs(folder / "runs.csv", grid))


def _parser(grid_file: Path) -> argparse.ArgumentParser:
    parser = OneSentenceParser(
        prog="grid",
        description="Train many small networks, dense and sparse, short and long, and fit a scaling law to them. A run "
        "that is done is not made again, so a grid that was stopped goes on where it was.",
        epilog="All other flags are those of fit, for every run: --data.root DIR, --config more.yaml.",
        allow_abbrev=False,
    )
    parser.add_argument("--grid", type=Path, default=grid_file, help=f"YAML of the grid (default: {grid_file.name})")
    parser.add_argument("--folder", help="where to write; by default what the grid says")
    return parser


def _check_flags(settings: Sequence[str]) -> None:
    given = {flag.split("=")[0].removeprefix("--") for flag in settings if flag.startswith("--")}
    if taken := sorted(given & flags_of(TYPICAL).keys()):
        raise ValueError(f"--{taken[0]} is set by the grid for each run; leave it out, or write another grid.")


def _train(
    grid: Grid, done: Mapping[Point, Row], folder: Path, make: Callable[[Point], GridPoint], report: RunReport
) -> None:
    rows, points = dict(done), grid.points
    if done:
        print(f"{len(done)} of {len(points)} runs are done already, in {folder}.", flush=True)
    for point in points:
        if point in done:
            continue
        rows[point] = make(point).train()
        report.steps = report.batches = 0
        append_run(folder / "runs.csv", rows[point])
        _tell(point, rows, points)
        gc.collect()  # a trainer holds itself, and with it the processes that load its data


def _tell(point: Point, rows: Mapping[Point, Row], points: list[Point]) -> None:
    row, left = rows[point], seconds_left(rows, points)
    print(
        f"[{len(rows):>{len(str(len(points)))}}/{len(points)}] {point}: {row['nonzero_params']:,} non-zero parameters, "
        f"{row['data']:,} images, loss {row['loss']:.4f}, {row['seconds']:.0f} s; about {left / 60:.1f} minutes left",
        flush=True,
    )


def _conclude(folder: Path, rows: Mapping[Point, Row]) -> None:
    """Fit the law, tell it, and tell what it is good for."""
    runs = {name: np.array([row[name] for row in rows.values()], np.float64) for name in VECTORS}
    print(f"Fitting a law to {len(rows)} runs.", flush=True)
    fit = fit_scaling_law(
        sparsity=runs["sparsity"],
        nonzero_params=runs["nonzero_params"],
        data=runs["data"],
        loss=runs["loss"],
        data_unit="images",
    )
    law = folder / "law.json"
    publish(fit, f"grid {folder.name}", law)
    with warn_on_error(picture := folder / "law.png"), optional_imports():
        draw(fit, runs, f"grid {folder.name}", picture)
    size, data = np.median(runs["nonzero_params"]), runs["data"].max()
    print(f"\nRuns, law and picture are in {folder}. How sparse, for a size and data of your own:\n")
    print(f"slicefine advise --law {law} --parameters {size / 1e3:.0f}K --data {data / 1e3:.0f}K")


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning, which has something to say of each run, is silent inside."""
    levels = {name: logging.getLogger(name).level for name in TALKERS}
    try:
        for name in TALKERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
