"""``slicefine fit-law``: fit the scaling law to the training runs in a CSV file.

Prints the coefficients with their intervals and checks.  Writes a JSON file for ``slicefine advise --law`` and a plot.
"""

import argparse
from pathlib import Path

import numpy as np

from slicefine_pl.cli.scaling.arguments import quantity
from slicefine_pl.cli.scaling.csv_columns import RunColumns, read_columns, to_numbers
from slicefine_pl.files.atomic import write_atomic
from slicefine_pl.scaling import FittedLaw, costs, fit_scaling_law
from slicefine_pl.scaling.files import SavedLaw, law_json
from slicefine_pl.text_table import text_table

MEANINGS = {
    "a_S": "size term at density 1: falls with density",
    "b_S": "exponent of the density",
    "c_S": "size term at any density",
    "b_N": "exponent of the non-zero parameters N",
    "a_D": "data D at which the data term is 1",
    "b_D": "exponent of the data",
    "c": "loss that neither N nor D removes",
}

DESCRIPTION = """Fit L(S, N, D) = (a_S (1-S)^b_S + c_S) N^-b_N + (a_D/D)^b_D + c to finished training runs.

The CSV file has a header, one line per run, and at least these four columns (flags rename them):
  sparsity        S, fraction of zeros, in [0, 1)
  nonzero_params  N, non-zero parameters without embeddings
  data            D, images or tokens seen in training
  loss            validation loss at the end of the run, in nats

At least eight runs, with three sparsities, two sizes and three amounts of data. For instance:
  sparsity,nonzero_params,data,loss
  0.5,10.6e6,16.4e9,2.31"""
EXAMPLE = """example:
  slicefine fit-law runs.csv --data-unit images --json law.json --plot law.png
  slicefine fit-law t5-data.csv --parameters-column scale --parameters-factor 169869312 --dense-parameters \\
      --data-column steps --data-factor 65536 --loss-column val-loss --json t5.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``slicefine fit-law``."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLE
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("runs", type=Path, help="CSV file with a header and one line per run")
    add("--sparsity-column", default="sparsity", help="fraction of zeros, in [0, 1) (default: sparsity)")
    add(
        "--parameters-column",
        default="nonzero_params",
        help="non-zero parameters without embeddings (default: nonzero_params)",
    )
    add("--parameters-factor", type=quantity, default=1.0, help="parameters that 1 in that column stands for, e.g. 1M")
    add(
        "--dense-parameters",
        action="store_true",
        help="the column counts all parameters, zeros too: take (1 - S) of it",
    )
    add("--data-column", default="data", help="images or tokens seen in training (default: data)")
    add("--data-factor", type=quantity, default=1.0, help="images or tokens that 1 in that column stands for")
    add("--data-unit", choices=("tokens", "images"), default="tokens", help="what the data count (default: tokens)")
    add("--loss-column", default="loss", help="validation loss (default: loss)")
    add(
        "--residual",
        choices=("log", "plain"),
        default="log",
        help="residual of the loss; the paper uses log for text and plain for images",
    )
    add("--delta", type=float, help="where the Huber loss turns linear (default: 1e-3 log, 1e-2 plain)")
    add("--starts", type=int, default=50, help="searches for the minimum (default: 50)")
    add("--replicates", type=int, default=100, help="laws in the bootstrap (default: 100)")
    add("--seed", type=int, default=0, help="seed of starts and bootstrap (default: 0)")
    add("--json", type=Path, help="write the law here, for slicefine advise --law")
    add("--plot", type=Path, help="write a plot here: the fit, its residuals, contours of equal best sparsity")


def run(arguments: argparse.Namespace) -> int:
    """Fit the law, print and write it; returns the exit code."""
    runs = read_runs(arguments)
    fit = fit_scaling_law(
        **runs,
        data_unit=arguments.data_unit,
        residual=arguments.residual,
        delta=arguments.delta,
        starts=arguments.starts,
        replicates=arguments.replicates,
        seed=arguments.seed,
    )
    origin = f"slicefine fit-law {arguments.runs.name}"
    publish(fit, origin, arguments.json)
    if arguments.plot:
        draw(fit, runs, origin, arguments.plot)
    return 0


def publish(fit: FittedLaw, origin: str, law: Path | None) -> None:
    """Print a fit, and write it to a file.

    Args:
        fit: The fitted law.
        origin: Origin of the runs, for the reader.
        law: JSON file for ``slicefine advise --law``; ``None`` writes no file.
    """
    print(fit_text(fit))
    if law:
        write_atomic(law, law_json(fit, _source(fit, origin)))


def draw(fit: FittedLaw, runs: RunColumns, origin: str, plot: Path) -> None:
    """Write a plot of the fit, its residuals and the contours of equal best sparsity.

    Args:
        fit: The fitted law.
        runs: The fitted runs.
        origin: Origin of the runs, for the reader.
        plot: File to write.
    """
    from slicefine_pl.analysis.plots import save_figure
    from slicefine_pl.cli.scaling.plots import plot_fit

    saved = SavedLaw(fit.law, fit.ranges, fit.replicates, fit.statement, _source(fit, origin))
    save_figure(plot_fit(saved, runs), plot, dpi=150)


def _source(fit: FittedLaw, origin: str) -> str:
    return f"{origin}, {fit.runs} runs"


def read_runs(arguments: argparse.Namespace) -> RunColumns:
    """Read the runs from the CSV file, in single parameters and single images or tokens.

    Raises:
        ValueError: A column is missing, a cell is not a number, or the file is not a CSV file.
    """
    table = read_columns(arguments.runs)
    columns = {
        "sparsity": arguments.sparsity_column,
        "nonzero_params": arguments.parameters_column,
        "data": arguments.data_column,
        "loss": arguments.loss_column,
    }
    runs = {}
    for name, column in columns.items():
        if column not in table:
            flag = {"nonzero_params": "parameters"}.get(name, name)
            raise ValueError(
                f"column {column!r} ({name}) is not among {', '.join(map(repr, table))}; name it with --{flag}-column."
            )
        runs[name] = to_numbers(table[column])
        if not np.isfinite(runs[name]).all():
            row = int(np.flatnonzero(~np.isfinite(runs[name]))[0])
            raise ValueError(
                f"column {column!r}, run {row} contains {table[column][row]!r}; give a number, or drop the run."
            )
    density = 1 - costs.checked_sparsity(runs["sparsity"]) if arguments.dense_parameters else 1.0
    runs["nonzero_params"] = runs["nonzero_params"] * arguments.parameters_factor * density
    runs["data"] = runs["data"] * arguments.data_factor
    return runs


def fit_text(fit: FittedLaw) -> str:
    """Format coefficients and checks, and say which coefficients the runs do not determine."""
    rows = []
    for name, value in fit.law.coefficients.items():
        low, high = fit.intervals.get(name, (float("nan"), float("nan")))
        inside = f"{low:.4g} … {high:.4g}" if fit.intervals else "no bootstrap"
        rows.append((name, MEANINGS[name], f"{value:.5g}", inside, "no" if name in fit.undetermined else "yes"))
    headings = ("coefficient", "meaning", "value", "90 % of the bootstrap", "determined")
    table = text_table(headings, [rows], numbers_from=2, title=f"L(S, N, D) of {fit.runs} runs")
    lines = [
        f"Objective {fit.objective:.4e}: mean Huber loss of the {fit.residual} residual, delta {fit.delta:g}. "
        f"{fit.agreeing} of {fit.starts} starts agree. Mean error on these runs {100 * fit.mean_error:.2f} %."
    ]
    for held in fit.hold_outs:
        if held.mean_error is None or held.bias is None:
            lines.append(f"Left out the {held.runs} {held.left_out}: no error, {held.reason}")
        else:
            lines.append(
                f"Left out the {held.runs} {held.left_out}: error {100 * held.mean_error:.2f} %, "
                f"bias {100 * held.bias:+.2f} % (negative: too optimistic)."
            )
    return "\n".join([table, "", *lines, fit.statement])
