"""``slicefine fit-law``: fit the scaling law to the runs in a CSV file.

Prints the coefficients with intervals and checks. Writes the JSON file that ``slicefine advise --law`` reads, and a
plot.
"""

import argparse
from pathlib import Path

from slicefine_pl.cli.scaling.arguments import quantity
from slicefine_pl.cli.scaling.fitted_law import fit_text, write_law, write_plot
from slicefine_pl.cli.scaling.run_columns import read_run_columns
from slicefine_pl.scaling import fit_scaling_law

DESCRIPTION = """Fit L(S, N, D) = (a_S (1-S)^b_S + c_S) N^-b_N + (a_D/D)^b_D + c to finished training runs.

The CSV file has a header, one line per run, and at least these four columns (flags rename them):
  sparsity        S, fraction of zeros, in [0, 1)
  nonzero_params  N, non-zero parameters without embeddings
  data            D, images or tokens seen in training
  loss            validation loss at the end of the run, in nats

At least eight runs, with three sparsities, two sizes and three amounts of data. For example:
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
    add("--parameters-factor", type=quantity, default=1.0, help="parameters per unit of that column, e.g. 1M")
    add(
        "--dense-parameters",
        action="store_true",
        help="the column counts all parameters including zeros; N is (1 - S) of it",
    )
    add("--data-column", default="data", help="images or tokens seen in training (default: data)")
    add("--data-factor", type=quantity, default=1.0, help="images or tokens per unit of that column")
    add("--data-unit", choices=("tokens", "images"), default="tokens", help="unit of the data (default: tokens)")
    add("--loss-column", default="loss", help="validation loss (default: loss)")
    add(
        "--residual",
        choices=("log", "plain"),
        default="log",
        help="residual of the loss; the paper uses log for text, plain for images (default: log)",
    )
    add("--delta", type=float, help="residual above which the Huber loss is linear (default: 1e-3 log, 1e-2 plain)")
    add("--starts", type=int, default=50, help="starts of the optimization (default: 50)")
    add("--replicates", type=int, default=100, help="replicates of the bootstrap (default: 100)")
    add("--seed", type=int, default=0, help="seed of starts and bootstrap (default: 0)")
    add("--json", type=Path, help="write the law to this file, for slicefine advise --law")
    add("--plot", type=Path, help="plot the fit, its residuals and contours of equal optimal sparsity into this file")


def run(arguments: argparse.Namespace) -> int:
    """Fit the law, print it, and write it if requested; returns the exit code."""
    runs = read_run_columns(arguments)
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
    print(fit_text(fit))
    if arguments.json:
        write_law(fit, origin, arguments.json)
    if arguments.plot:
        write_plot(fit, runs, origin, arguments.plot)
    return 0
