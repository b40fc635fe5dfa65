"""``<recipe> grid``: train many small networks, and fit a scaling law of sparse networks to them.

The missing runs are trained one after another in this process. The grid's folder contains ``runs.csv``, ``law.json``
and ``law.png``.

Source:  a small version of the experiments of Frantar et al., arXiv:2309.08520.
"""

import argparse
import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from slicefine_pl.cli.grid.finished_runs import RunRecord, append_run, check_settings, read_finished_runs, seconds_left
from slicefine_pl.cli.grid.plan import Grid, GridPoint, read_grid
from slicefine_pl.cli.grid.point_cli import PointCLI, point_settings
from slicefine_pl.cli.parser import OneSentenceParser
from slicefine_pl.cli.recipe.run_report import RunReport
from slicefine_pl.cli.scaling.fitted_law import fit_text, write_law, write_plot
from slicefine_pl.cli.scaling.model_size import count_parameters
from slicefine_pl.files.atomic import warn_on_error
from slicefine_pl.optional import optional_imports
from slicefine_pl.scaling import fit_scaling_law

VECTORS = ("sparsity", "nonzero_params", "data", "loss")  # columns that a law is fitted to
TYPICAL = GridPoint(backbone="any", lr=1.0, sparsity=0.5, epochs=1, seed=0)  # shared settings do not depend on it
LOGGERS = ("lightning.pytorch", "lightning.fabric")
MakeCLI = Callable[[RunReport, GridPoint, Sequence[str]], PointCLI]


def run_grid(arguments: Sequence[str], grid_file: Path, report: RunReport, make: MakeCLI) -> None:
    """Train every missing run of a grid, and fit the law.

    Args:
        arguments: Command line after ``grid``.
        grid_file: YAML file of the recipe's own grid.
        report: Records how far each run came. It is reset between runs, where an error is the user's.
        make: Creates the command line of a run, with flags of ``fit``.

    Raises:
        ValueError: The grid or a flag is not possible, or the folder contains runs of another grid.
    """
    parsed, flags = _parser(grid_file).parse_known_args(arguments)
    grid = read_grid(parsed.grid)
    folder = Path(parsed.folder or grid.folder)
    _check_flags(flags)
    for backbone in grid.backbones:
        count_parameters(backbone)  # raises for an unknown backbone now, not in an hour
    finished = read_finished_runs(folder / "runs.csv", grid)
    folder.mkdir(parents=True, exist_ok=True)
    with _without_lightning_output():
        check_settings(folder / "settings.yaml", make(report, TYPICAL, flags).settings)
        _train(grid, finished, folder, lambda point: make(report, point, flags), report)
    _fit_law(folder, read_finished_runs(folder / "runs.csv", grid))


def _parser(grid_file: Path) -> argparse.ArgumentParser:
    parser = OneSentenceParser(
        prog="grid",
        description="Train many small networks, dense and sparse, for short and long, and fit a scaling law to them. "
        "Finished runs are kept, so a grid that was stopped continues where it was.",
        epilog="All other flags are those of fit, for every run: --data.root DIR, --config more.yaml.",
        allow_abbrev=False,
    )
    parser.add_argument("--grid", type=Path, default=grid_file, help=f"YAML of the grid (default: {grid_file.name})")
    parser.add_argument("--folder", help="folder of the results (default: that of the grid)")
    return parser


def _check_flags(flags: Sequence[str]) -> None:
    given = {flag.split("=")[0].removeprefix("--") for flag in flags if flag.startswith("--")}
    if taken := sorted(given & point_settings(TYPICAL).keys()):
        raise ValueError(f"--{taken[0]} is set by the grid for each run; leave it out, or write another grid.")


def _train(
    grid: Grid,
    finished: Mapping[GridPoint, RunRecord],
    folder: Path,
    make: Callable[[GridPoint], PointCLI],
    report: RunReport,
) -> None:
    runs, points = dict(finished), grid.points
    if finished:
        print(f"{len(finished)} of {len(points)} runs are finished already, in {folder}.", flush=True)
    for point in points:
        if point in finished:
            continue
        runs[point] = make(point).train()
        report.steps = report.batches = 0
        append_run(folder / "runs.csv", runs[point])
        _print_progress(point, runs, points)
        gc.collect()  # a trainer is in a reference cycle, with its data loader workers


def _print_progress(point: GridPoint, runs: Mapping[GridPoint, RunRecord], points: list[GridPoint]) -> None:
    run, left = runs[point], seconds_left(runs, points)
    print(
        f"[{len(runs):>{len(str(len(points)))}}/{len(points)}] {point}: {run['nonzero_params']:,} non-zero parameters, "
        f"{run['data']:,} images, loss {run['loss']:.4f}, {run['seconds']:.0f} s; about {left / 60:.1f} minutes left",
        flush=True,
    )


def _fit_law(folder: Path, runs: Mapping[GridPoint, RunRecord]) -> None:
    """Fit the law, write it, and print how to use it."""
    vectors = {name: np.array([run[name] for run in runs.values()], np.float64) for name in VECTORS}
    print(f"Fitting a law to {len(runs)} runs.", flush=True)
    fit = fit_scaling_law(
        sparsity=vectors["sparsity"],
        nonzero_params=vectors["nonzero_params"],
        data=vectors["data"],
        loss=vectors["loss"],
        data_unit="images",
    )
    origin, law = f"grid {folder.name}", folder / "law.json"
    print(fit_text(fit))
    write_law(fit, origin, law)
    with warn_on_error(plot := folder / "law.png"), optional_imports():
        write_plot(fit, vectors, origin, plot)
    size, data = np.median(vectors["nonzero_params"]), vectors["data"].max()
    print(f"\nRuns, law and plot are in {folder}. The best sparsity for your size and data:\n")
    print(f"slicefine advise --law {law} --parameters {size / 1e3:.0f}K --data {data / 1e3:.0f}K")


@contextmanager
def _without_lightning_output() -> Iterator[None]:
    """Hide what Lightning logs and warns about in every run."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    try:
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
