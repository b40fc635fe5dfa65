"""Tables and a plot of ``benchmarks.accuracy.rates``.

python -m benchmarks.accuracy.rates_report FILES --searched benchmarks/results/accuracy_2026-11-26.jsonl --plot PNG

The first table compares slices at the rate of full fine-tuning with the same slices at a rate that was searched for
them; differences are paired by seed. The second shows the validation loss at half, once and double the rate. The plot
shows the validation loss over the learning rate, without scaling and with it.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.accuracy.rates import FACTORS, STUDY, chosen_rates
from benchmarks.accuracy.run import SEEDS, TUNING_SEEDS
from benchmarks.accuracy.scores import AllScores, Estimate, read_scores
from benchmarks.accuracy.studies import studies
from benchmarks.accuracy.tasks import TASKS
from benchmarks.harness.plots import DPI
from benchmarks.harness.results import Row, argument_parser, markdown_table, read_rows
from slicefine_pl.analysis.plots import save_figure

SUFFIX = " scaled"
COLORS = {8: "#56B4E9", 32: "#0072B2", 128: "#009E73"}  # by rank; Okabe and Ito
Runs = Mapping[tuple[str, str], Mapping[float, Mapping[int, Row]]]  # by task and method, learning rate, seed


def read_runs(*paths: Path) -> Runs:
    """All runs of files; a later file replaces runs of an earlier one."""
    runs: dict[tuple[str, str], dict[float, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in chain.from_iterable(map(read_rows, paths)):
        runs[row["task"], row["method"]][row["lr"]][row["seed"]] = row
    return runs


def losses(by_rate: Mapping[float, Mapping[int, Row]]) -> dict[float, float]:
    """Mean validation loss of the tuning seeds, by learning rate; rates without both seeds are left out."""
    complete = {rate: rows for rate, rows in sorted(by_rate.items()) if set(rows) >= set(TUNING_SEEDS)}
    return {rate: statistics.fmean(rows[seed]["val_loss"] for seed in TUNING_SEEDS) for rate, rows in complete.items()}


def compare(runs: Runs, searched: AllScores, rates: Mapping[str, float]) -> list[list[str]]:
    """Test scores at the rate of full fine-tuning, and minus those at a searched rate where there are some."""
    lines = []
    for name in studies().studies[STUDY]:
        pairs: list[tuple[list[float], tuple[float, ...]]] = []
        for task, rate in rates.items():
            rows = runs.get((task, name), {}).get(rate, {})
            if set(rows) < set(SEEDS):
                continue
            scale = 1 if TASKS[task].score == "perplexity" else 100
            tests = [scale * rows[seed]["test"] for seed in SEEDS]
            other = searched.get((task, name.removesuffix(SUFFIX)))
            gap = "-"
            if other is not None:
                gap = f"{Estimate.of([a - b for a, b in zip(tests, other.tests, strict=True)]):+.1f}"
                pairs.append((tests, other.tests))
            lines.append([task, name, f"{rate:g}", f"{Estimate.of(tests):.1f}", gap])
        if len(pairs) > 1:
            means = [statistics.fmean(own[i] - other[i] for own, other in pairs) for i in range(len(SEEDS))]
            lines.append([f"mean of {len(pairs)} tasks", name, "", "", f"{Estimate.of(means):+.1f}"])
    return lines


def sensitivity(runs: Runs, rates: Mapping[str, float]) -> list[list[str]]:
    """Validation loss at each multiple of the rate."""
    lines = []
    for task, rate in rates.items():
        for name in studies().studies[STUDY]:
            found = losses(runs.get((task, name), {}))
            cells = [found.get(float(f"{rate * factor:.3g}")) for factor in sorted(FACTORS)]
            if any(cell is not None for cell in cells):
                lines.append([task, name, *("-" if cell is None else f"{cell:.3f}" for cell in cells)])
    return lines


def draw(runs: Runs, searched: Runs, task: str, path: Path) -> None:
    """Draw the validation loss over the optimizer's learning rate, without and with scaling."""
    figure = Figure(figsize=(10, 4), layout="constrained", dpi=DPI)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for axis, source, suffix, title in (
        (axes[0], searched, "", "lr_scale=1"),
        (axes[1], runs, SUFFIX, 'lr_scale="auto"'),
    ):
        for rank, color in COLORS.items():
            found = losses(source.get((task, f"column r={rank} place=random{suffix}"), {}))
            if found:
                axis.plot(list(found), list(found.values()), "o-", color=color, label=f"{rank} columns")
        full = losses(searched.get((task, "full"), {}))
        axis.plot(list(full), list(full.values()), "s--", color="black", label="full fine-tuning")
        axis.set(xscale="log", xlabel="learning rate of the optimizer", title=title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"{task}: validation loss")
    axes[0].legend()
    save_figure(figure, path)


def main() -> None:
    """Print the tables, and draw the plot."""
    parser = argument_parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="files of benchmarks.accuracy.rates")
    parser.add_argument("--searched", type=Path, required=True, help="file with searched rates")
    parser.add_argument("--task", choices=TASKS, default="tweets", help="task of the plot")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    runs, searched = read_runs(*arguments.runs), read_runs(arguments.searched)
    rates = chosen_rates(arguments.searched, [task for task in TASKS if any(key[0] == task for key in runs)])
    head = ["task", "method", "learning rate", "test", "minus the searched rate"]
    print(markdown_table(head, compare(runs, read_scores(arguments.searched), rates)), end="\n\n")
    print(
        markdown_table(["task", "method", *(f"{each:g} x rate" for each in sorted(FACTORS))], sensitivity(runs, rates))
    )
    if arguments.plot is not None:
        draw(runs, searched, arguments.task, arguments.plot)


if __name__ == "__main__":
    main()
