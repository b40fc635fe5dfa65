"""Tables and plots of what ``accuracy.py`` found: means, intervals, differences to LoRA, and accuracy against cost.

python benchmarks/accuracy_report.py benchmarks/results/accuracy.jsonl --cost benchmarks/results/accuracy_cost.json

Of each task and method the learning rate counts that validation chose (by its loss; ``--choose score``: by its score),
once it has all five seeds.  An interval is Student's, 95 %, over the seeds: it tells how a method varies from run to
run on this split, not how another test set would score.  Differences are taken seed by seed, and over tasks as the
mean of the tasks' differences, seed by seed.  ``--against "column r=32 place=random"`` takes them to slices that stay,
for instance.
"""

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accuracy import CHOICES, DIFFER_IN_COST, SEEDS, TUNING_SEEDS, Method, miss
from scipy.stats import t as student
from tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REFERENCE = "lora r=16"
COLOURS = {  # Okabe & Ito: apart for colour-blind eyes too
    "probe": "#999999",
    "bitfit": "#E69F00",
    "lora": "#D55E00",
    "dora": "#CC79A7",
    "column": "#0072B2",
    "row": "#56B4E9",
    "alternate": "#009E73",
    "full": "#000000",
}


@dataclass(frozen=True)
class Estimate:
    """A mean and half the width of its 95 % interval."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        if len(values) < 2:
            return cls(statistics.fmean(values), float("nan"))
        spread = statistics.stdev(values) / len(values) ** 0.5
        return cls(statistics.fmean(values), float(student.ppf(0.975, len(values) - 1)) * spread)

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} ± {self.half:{spec.removeprefix('+')}}"


@dataclass(frozen=True)
class Cell:
    """The five runs of a method on a task.

    Attributes:
        rate: The chosen learning rate.
        tests: Test score of each seed: accuracy and correlation in hundredths, perplexity as it is.
        trained: Numbers that the optimizer updates.
        outermost: Whether no higher, or no lower rate was tried.
    """

    rate: float
    tests: tuple[float, ...]
    trained: int
    outermost: bool


def read(path: Path, choose: str = "loss") -> dict[tuple[str, str], Cell]:
    """The finished cells of a file, by task and method: the rate that validation chose, if it has all its seeds."""
    groups: dict[tuple[str, str], dict[float, dict[int, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for row in map(json.loads, path.read_text().splitlines()):
        groups[row["task"], row["method"]][row["lr"]][row["seed"]] = row
    cells: dict[tuple[str, str], Cell] = {}
    for (task, method), found in groups.items():
        fixed = Method.parse(method).kind == "probe"  # has no seeds
        rate = 0.0 if fixed else min(found, key=lambda each: tuning_miss(task, found[each], choose))
        rows = found[rate]
        if fixed or set(rows) >= set(SEEDS):
            scale = 1 if TASKS[task].score == "perplexity" else 100
            tests = tuple(scale * rows[0 if fixed else seed]["test"] for seed in SEEDS)
            outermost = not fixed and rate in (min(found), max(found))
            cells[task, method] = Cell(rate, tests, rows[0]["trained"], outermost)
    return cells


def tuning_miss(task: str, rows: Mapping[int, Mapping[str, Any]], choose: str) -> float:
    """What the choice makes small, over the seeds that choose; infinite while one is missing, or is not finite."""
    found = [miss(task, rows[seed], choose) if seed in rows else math.inf for seed in TUNING_SEEDS]
    return sum(found) if all(map(math.isfinite, found)) else math.inf


def order(methods: Iterable[str]) -> list[str]:
    """By kind, then by rank, then by name."""

    def place(name: str) -> tuple[int, int, str]:
        method = Method.parse(name)
        return list(COLOURS).index(method.kind), method.rank, name

    return sorted(methods, key=place)


def difference(
    cells: Mapping[tuple[str, str], Cell], method: str, tasks: Sequence[str], reference: str = REFERENCE
) -> tuple[Estimate, int] | None:
    """How much better than another method, and over how many tasks: those that have both; ``None`` where none has."""
    both = [task for task in tasks if (task, method) in cells and (task, reference) in cells]
    pairs = [(cells[task, method].tests, cells[task, reference].tests) for task in both]
    if not pairs:
        return None
    means = [statistics.fmean(own[i] - other[i] for own, other in pairs) for i in range(len(SEEDS))]
    return Estimate.of(means), len(pairs)


def tables(cells: Mapping[tuple[str, str], Cell], reference: str = REFERENCE) -> str:
    """Scores, then differences, of each network, in Markdown."""
    told = []
    for network in dict.fromkeys(TASKS[task].network for task in TASKS if any(key[0] == task for key in cells)):
        told += [network, table(cells, network), f"Differences to {reference}", differences(cells, network, reference)]
    told += [f"Differences to {reference}, mean accuracy over all networks", overall(cells, reference)]
    return "\n\n".join(told)


def table(cells: Mapping[tuple[str, str], Cell], network: str) -> str:
    """Methods by tasks: test score, and the learning rate in brackets, with a star if it was the outermost tried."""
    tasks = tasks_of(cells, network)
    lines = [
        f"| method | trained | {' | '.join(f'{task} ({TASKS[task].score})' for task in tasks)} |",
        f"|---|---|{'---|' * len(tasks)}",
    ]
    for method in methods_of(cells, tasks):
        found = [cells.get((task, method)) for task in tasks]
        trained = next(cell.trained for cell in found if cell is not None)
        lines.append(f"| {method} | {trained:,} | {' | '.join(map(shown, tasks, found))} |")
    return "\n".join(lines)


def shown(task: str, cell: Cell | None) -> str:
    if cell is None:
        return "-"
    solved = cell.rate == 0  # by a probe: one score, without seeds
    if solved:
        return f"{cell.tests[0]:.1f}"
    return f"{Estimate.of(cell.tests):{digits(task)}} ({cell.rate:g}{'*' if cell.outermost else ''})"


def digits(task: str) -> str:
    return ".3f" if TASKS[task].score == "perplexity" else ".1f"


def differences(cells: Mapping[tuple[str, str], Cell], network: str, reference: str = REFERENCE) -> str:
    """How much better than another method, seed by seed: on each task, and in the mean of those scored by accuracy."""
    tasks = tasks_of(cells, network)
    accurate = accuracies(tasks)
    lines = [f"| method | {' | '.join(tasks)} | mean accuracy (tasks) |", f"|---|{'---|' * (len(tasks) + 1)}"]
    for method in methods_of(cells, tasks):
        apart = [difference(cells, method, [task], reference) for task in tasks]
        mean = difference(cells, method, accurate, reference)
        if method == reference or not any(apart):
            continue
        told = ["-" if each is None else f"{each[0]:+{digits(task)}}" for task, each in zip(tasks, apart, strict=True)]
        told.append("-" if mean is None else f"{mean[0]:+.1f} ({mean[1]})")
        lines.append(f"| {method} | {' | '.join(told)} |")
    return "\n".join(lines)


def overall(cells: Mapping[tuple[str, str], Cell], reference: str = REFERENCE) -> str:
    """How much better than another method in the mean of all tasks scored by accuracy, whatever their network."""
    accurate = accuracies(TASKS)
    lines = ["| method | mean accuracy | tasks |", "|---|---|---|"]
    for method in methods_of(cells, accurate):
        found = difference(cells, method, accurate, reference)
        if method != reference and found is not None:
            lines.append(f"| {method} | {found[0]:+.1f} | {found[1]} |")
    return "\n".join(lines)


def accuracies(tasks: Iterable[str]) -> list[str]:
    """Those whose mean is taken."""
    return [task for task in tasks if TASKS[task].score == "accuracy" and TASKS[task].averaged]


def at_cost(
    cells: Mapping[tuple[str, str], Cell], costs: Mapping[str, Mapping[str, float]], network: str = "MiniLM"
) -> str:
    """Step time, memory beyond the weights and test accuracy, by step time: on the task with most methods."""
    tasks = [task for task in accuracies(TASKS) if TASKS[task].network == network]
    task = richest(cells, tasks)
    lines = [f"| method | step time / floor | memory, MB | {task} |", "|---|---|---|---|"]
    for name in sorted(costs, key=lambda name: (round(costs[name]["time"], 2), costs[name]["memory_mb"])):
        if (task, name) in cells:
            cost, mean = costs[name], Estimate.of(cells[task, name].tests)
            lines.append(f"| {name} | {cost['time']:.2f} | {cost['memory_mb']:.0f} | {mean:.1f} |")
    return "\n".join(lines)


def richest(cells: Mapping[tuple[str, str], Cell], tasks: Sequence[str]) -> str:
    """The task with most methods."""
    return max(tasks, key=lambda task: len(methods_of(cells, [task])))


def tasks_of(cells: Mapping[tuple[str, str], Cell], network: str) -> list[str]:
    return [task for task in TASKS if TASKS[task].network == network and any(key[0] == task for key in cells)]


def methods_of(cells: Mapping[tuple[str, str], Cell], tasks: Sequence[str]) -> list[str]:
    return order({method for task, method in cells if task in tasks})


def pareto(
    cells: Mapping[tuple[str, str], Cell],
    costs: Mapping[str, Mapping[str, float]],
    path: Path,
    network: str = "MiniLM",
) -> None:
    """Draw accuracy against trained parameters, step time and memory: of the task with most methods, and of all tasks.

    Methods are those that differ in cost: how often slices move, and where to, are drawn for one interval.  The linear
    head is left out, as it lies far below.

    Raises:
        ValueError: If there is no finished task.
    """
    from matplotlib.figure import Figure

    drawn = order(set(DIFFER_IN_COST) & {method for _, method in cells})
    tasks = [task for task in accuracies(tasks_of(cells, network)) if (task, REFERENCE) in cells]
    if not tasks:
        raise ValueError(
            f"No task of {network} has all seeds of {REFERENCE!r}; finish these runs, or leave out --plot."
        )
    rows = [[richest(cells, tasks)], tasks] if len(tasks) > 1 else [tasks]
    figure = Figure(figsize=(15, 4.6 * len(rows)), layout="constrained", dpi=110)
    grid = figure.subplots(len(rows), 3, squeeze=False, sharey="row")
    for row, averaged in zip(grid, rows, strict=True):
        draw(row, cells, costs, averaged, [name for name in drawn if all((task, name) in cells for task in averaged)])
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    figure.suptitle(f"Test accuracy against cost, lower row: mean over sets; bars: 95 % over {len(SEEDS)} seeds")
    figure.savefig(path)


def draw(
    row: Sequence["Axes"],
    cells: Mapping[tuple[str, str], Cell],
    costs: Mapping[str, Mapping[str, float]],
    tasks: Sequence[str],
    names: Sequence[str],
) -> None:
    """Mean accuracy over tasks against each of the three costs; open markers never move, squares are on part alone."""
    values: dict[str, dict[str, float]] = {
        "trained numbers": {name: cells[tasks[0], name].trained for name in names},
        "step time / floor": {name: costs[name]["time"] for name in names if name in costs},
        "memory beyond the weights, MB": {name: costs[name]["memory_mb"] for name in names if name in costs},
    }
    means = {
        name: Estimate.of([statistics.fmean(cells[task, name].tests[i] for task in tasks) for i in range(len(SEEDS))])
        for name in names
    }
    for axes, (label, paid) in zip(row, values.items(), strict=True):
        for name, value in paid.items():
            method = Method.parse(name)
            colour = COLOURS[method.kind]
            axes.errorbar(
                value,
                means[name].mean,
                means[name].half,
                fmt="s" if "on" in method.settings else "o",
                color=colour,
                mfc="none" if "place" in method.settings else colour,
                markersize=4 + method.rank**0.4,
                capsize=2,
                alpha=0.85,
                label=name,
            )
        axes.set(xlabel=label, ylabel=f"{', '.join(tasks)}: accuracy, %")
        axes.grid(alpha=0.3)
    row[0].set_xscale("log")


def main() -> None:
    """Print the table, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--against", default=REFERENCE, help=f"the method of the differences (default: {REFERENCE})")
    parser.add_argument("--choose", choices=CHOICES, default="loss", help="what of validation chose the learning rates")
    parser.add_argument("--cost", type=Path, help="what accuracy_cost.py measured")
    parser.add_argument("--plot", type=Path, help="PNG file for the plot")
    arguments = parser.parse_args()
    for path in (arguments.runs, arguments.cost):
        if path is not None and not path.is_file():
            parser.error(f"{path} does not exist; accuracy.py and accuracy_cost.py write such files.")
    cells = read(arguments.runs, arguments.choose)
    finished = methods_of(cells, list(TASKS))
    if arguments.against not in finished:
        parser.error(f"No task has all seeds of {arguments.against!r}; finished are {', '.join(finished) or 'none'}.")
    costs = json.loads(arguments.cost.read_text())["methods"] if arguments.cost is not None else {}
    print(tables(cells, arguments.against))
    if costs:
        print(f"\nAt equal cost\n\n{at_cost(cells, costs)}")
    if arguments.plot is not None:
        pareto(cells, costs, arguments.plot)


if __name__ == "__main__":
    main()
