"""Draw what columns, directions and LoRA learn from as many trained numbers.

python -m benchmarks.accuracy.directions_plot FILES --searched FILE --lora FILES --plot docs/images/directions.png

FILES are of ``benchmarks.accuracy.rates``; the others are of ``benchmarks.accuracy.run``. ``--searched`` has full
fine-tuning. One panel for each task: the mean validation loss over R, with one point for each seed. LoRA of rank r is
drawn at R = 2r. Slices are those at the rate of full fine-tuning, LoRA is at the rate that its search chose. Of runs
with the same settings, those of the file that is named last are taken.
"""

import statistics
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.accuracy.rates import chosen_rates
from benchmarks.accuracy.rates_report import Runs, read_runs
from benchmarks.accuracy.studies import MethodConfig, studies
from benchmarks.accuracy.tasks import TASKS
from benchmarks.harness.plots import DPI, open_frame
from benchmarks.harness.results import argument_parser
from slicefine_pl.analysis.plots import save_figure

KINDS = {"standard": ("columns", "#0072B2", "o"), "gradient": ("directions of the gradient", "#D55E00", "s")}
LORA = ("LoRA, r = R / 2", "#009E73", "^")


def by_rank(runs: Runs, task: str, rate: float, basis: str) -> dict[int, list[float]]:
    """Validation losses of all seeds, by rank."""
    found = {}
    for name, method in sorted(studies().methods.items(), key=lambda item: item[1].rank):
        rows = runs.get((task, name), {}).get(rate, {})
        if rows and _compared(method, basis):
            found[method.rank] = [row["val_loss"] for row in rows.values()]
    return found


def _compared(method: MethodConfig, basis: str) -> bool:
    """Whether a method trains columns or directions of a basis that stay, and scales its rate."""
    stays = method.position == "random" if basis == "standard" else method.interval is None
    return (method.kind, method.lr_scale, method.basis) == ("column", "auto", basis) and stays


def lora_by_rank(runs: Runs, task: str) -> dict[int, list[float]]:
    """Validation losses of LoRA in all layers by 2r, at the best of the rates with the most seeds: the chosen one."""
    found = {}
    for name, method in sorted(studies().methods.items(), key=lambda item: item[1].rank):
        if (method.kind, method.layers) == ("lora", "all") and (by_rate := runs.get((task, name))):
            losses = [[row["val_loss"] for row in rows.values()] for rows in by_rate.values()]
            found[2 * method.rank] = max(losses, key=lambda each: (len(each), -statistics.fmean(each)))
    return found


def draw(axes: Axes, task: str, rate: float, runs: Runs, lora: Runs, full: list[float]) -> None:
    """Draw one task."""
    curves = [(by_rank(runs, task, rate, basis), look) for basis, look in KINDS.items()]
    for found, (label, color, marker) in [*curves, (lora_by_rank(lora, task), LORA)]:
        axes.plot(list(found), [statistics.fmean(each) for each in found.values()], "-", color=color, label=label)
        for rank, losses in found.items():
            axes.plot([rank] * len(losses), losses, marker, color=color, markersize=3, alpha=0.6)
    axes.axhline(statistics.fmean(full), color="black", linestyle="--", linewidth=1, label="full fine-tuning")
    axes.set(xscale="log", title=task)
    axes.set_xticks([2, 8, 32, 128], ["2", "8", "32", "128"])
    axes.minorticks_off()
    open_frame(axes, "both")


def plot(runs: Runs, lora: Runs, searched: Runs, rates: Mapping[str, float], path: Path) -> None:
    """Draw all tasks."""
    figure = Figure(figsize=(11, 6), layout="constrained", dpi=DPI)
    panels = figure.subplots(2, -(-len(rates) // 2), squeeze=False)
    for axes, (task, rate) in zip(panels.flat, rates.items(), strict=False):
        draw(axes, task, rate, runs, lora, [row["val_loss"] for row in searched[task, "full"][rate].values()])
    for axes in panels[-1]:
        axes.set_xlabel("R")
    for axes in panels[:, 0]:
        axes.set_ylabel("validation loss")
    panels[0, 0].legend(fontsize=8)
    save_figure(figure, path)


def main() -> None:
    """Draw the plot."""
    parser = argument_parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="files of benchmarks.accuracy.rates")
    parser.add_argument("--searched", type=Path, required=True, help="file with searched rates of full fine-tuning")
    parser.add_argument("--lora", type=Path, nargs="+", default=[], help="files with LoRA of several ranks")
    parser.add_argument("--plot", type=Path, required=True)
    arguments = parser.parse_args()
    runs, averaged = read_runs(*arguments.runs), [task for task, each in TASKS.items() if each.averaged]
    with_directions = {task for task, name in runs if studies().methods[name].basis == "gradient"}
    rates = chosen_rates(arguments.searched, [task for task in averaged if task in with_directions])
    plot(runs, read_runs(*arguments.lora), read_runs(arguments.searched), rates, arguments.plot)


if __name__ == "__main__":
    main()
