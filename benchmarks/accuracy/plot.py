"""Plot accuracy against trained parameters, step time and memory."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.accuracy.run import SEEDS
from benchmarks.accuracy.scores import REFERENCE, AllScores, Estimate, accuracy_tasks, broadest, in_order, tasks_of
from benchmarks.accuracy.studies import SLICES, MethodConfig, studies
from benchmarks.harness.plots import DPI, LABELS
from slicefine_pl.analysis.plots import save_figure

COLORS = {  # Okabe and Ito: distinct for color-blind readers too
    "bitfit": "#E69F00",
    "lora": "#D55E00",
    "dora": "#CC79A7",
    "column": "#0072B2",
    "row": "#56B4E9",
    "alternate": "#009E73",
    "full": "#000000",
}


def draw(scores: AllScores, costs: Mapping[str, Mapping[str, float]], path: Path, network: str = "MiniLM") -> None:
    """Draw one row for the task with most methods, and one for the mean over all tasks.

    Shown are the methods that differ in cost; intervals and orders of moving slices do not change it. The probe is
    left out, because it lies far below.

    Raises:
        ValueError: No task is finished.
    """
    drawn = in_order(set(studies().differ_in_cost) & {method for _, method in scores})
    tasks = [task for task in accuracy_tasks(tasks_of(scores, network)) if (task, REFERENCE) in scores]
    if not tasks:
        raise ValueError(f"No task of {network} has all seeds of {REFERENCE!r}; finish these runs, or omit --plot.")
    rows = [[broadest(scores, tasks)], tasks] if len(tasks) > 1 else [tasks]
    figure = Figure(figsize=(15, 4.6 * len(rows) + 1.4), layout="constrained", dpi=DPI)
    grid = figure.subplots(len(rows), 3, squeeze=False, sharey="row")
    for row, averaged in zip(grid, rows, strict=True):
        names = [name for name in drawn if all((task, name) in scores for task in averaged)]
        _row(row, scores, costs, averaged, names)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", fontsize=9, ncols=4)
    title = f"Test accuracy against cost; bars: 95 % interval over {len(SEEDS)} seeds"
    figure.suptitle(f"{title}; lower row: mean over tasks" if len(rows) > 1 else title)
    save_figure(figure, path)


def label_of(method: MethodConfig) -> str:
    """Describe a method as the tables of the documentation do."""
    if method.kind in SLICES:
        lines = "columns, then rows" if method.kind == "alternate" else f"{method.kind}{'s' * (method.rank > 1)}"
        words = f"{method.rank} {lines}"
    else:
        words = LABELS[method.kind] + (f", r = {method.rank}" if method.kind in ("lora", "dora") else "")
    if method.layers == "query_value":
        words += " of queries and values" if method.kind in SLICES else ", queries and values"
    if method.position is not None:
        words += ", never moved"
    elif method.interval is not None:
        words += f", moved every {method.interval} steps"
    return words


def _row(
    row: Sequence[Axes],
    scores: AllScores,
    costs: Mapping[str, Mapping[str, float]],
    tasks: Sequence[str],
    names: Sequence[str],
) -> None:
    """Mean accuracy over tasks against each of the three costs.

    Open markers: slices that never move. Squares: only queries and values.
    """
    timed = [name for name in names if name in costs]
    values: dict[str, dict[str, float]] = {
        "trained parameters": {name: scores[tasks[0], name].trained for name in names},
        "step time / frozen baseline": {name: costs[name]["time"] for name in timed},
        "memory beyond the weights, MB": {name: costs[name]["memory_mb"] for name in timed},
    }
    means = {
        name: Estimate.of([statistics.fmean(scores[task, name].tests[i] for task in tasks) for i in range(len(SEEDS))])
        for name in names
    }
    for axes, (label, cost) in zip(row, values.items(), strict=True):
        for name, value in cost.items():
            method = studies().methods[name]
            color = COLORS[method.kind]
            axes.errorbar(
                value,
                means[name].mean,
                means[name].half,
                fmt="o" if method.layers == "all" else "s",
                color=color,
                mfc=color if method.position is None else "none",
                markersize=4 + method.rank**0.4,
                capsize=2,
                alpha=0.85,
                label=label_of(method),
            )
        axes.set(xlabel=label, ylabel=f"{', '.join(tasks)}: accuracy, %")
        axes.grid(alpha=0.3)
    row[0].set_xscale("log")
