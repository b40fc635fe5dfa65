"""What commands do with a fitted law: print it, write it and plot it."""

from pathlib import Path

from slicefine_pl.cli.scaling.csv_columns import RunColumns
from slicefine_pl.files.atomic import write_atomic
from slicefine_pl.scaling import FittedLaw
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


def fit_text(fit: FittedLaw) -> str:
    """Format coefficients, checks, and which coefficients the runs do not determine."""
    rows = []
    for name, value in fit.law.coefficients.items():
        low, high = fit.intervals.get(name, (float("nan"), float("nan")))
        interval = f"{low:.4g} … {high:.4g}" if fit.intervals else "no bootstrap"
        rows.append((name, MEANINGS[name], f"{value:.5g}", interval, "no" if name in fit.undetermined else "yes"))
    headings = ("coefficient", "meaning", "value", "90 % of the bootstrap", "determined")
    table = text_table(headings, [rows], numbers_from=2, title=f"L(S, N, D) of {fit.runs} runs")
    lines = [
        f"Objective {fit.objective:.4e}: mean Huber loss of the {fit.residual} residual, delta {fit.delta:g}. "
        f"{fit.agreeing} of {fit.starts} starts agree. Mean error on these runs {100 * fit.mean_error:.2f} %."
    ]
    for held in fit.hold_outs:
        if held.mean_error is None or held.bias is None:
            lines.append(f"Without the {held.runs} {held.left_out}: no error, {held.reason}")
        else:
            lines.append(
                f"Without the {held.runs} {held.left_out}: error on them {100 * held.mean_error:.2f} %, "
                f"bias {100 * held.bias:+.2f} % (negative: too optimistic)."
            )
    return "\n".join([table, "", *lines, fit.statement])


def write_law(fit: FittedLaw, origin: str, path: Path) -> None:
    """Write the JSON file that ``slicefine advise --law`` reads.

    Args:
        fit: The fitted law.
        origin: Where the runs come from, in words.
        path: The file.
    """
    write_atomic(path, law_json(fit, _source(fit, origin)))


def write_plot(fit: FittedLaw, runs: RunColumns, origin: str, path: Path) -> None:
    """Plot the fit, its residuals and the contours of equal optimal sparsity.

    Args:
        fit: The fitted law.
        runs: The runs that it was fitted to.
        origin: Where the runs come from, in words.
        path: The file, whose suffix chooses the format.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from slicefine_pl.analysis.plots import save_figure
    from slicefine_pl.cli.scaling.plots import plot_fit

    saved = SavedLaw(fit.law, fit.ranges, fit.replicates, fit.statement, _source(fit, origin))
    save_figure(plot_fit(saved, runs), path, dpi=150)


def _source(fit: FittedLaw, origin: str) -> str:
    return f"{origin}, {fit.runs} runs"
