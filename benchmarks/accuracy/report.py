"""Tables and plots of the accuracy benchmark: scores, differences to LoRA, and accuracy against cost.

python -m benchmarks.accuracy.report RUNS --cost COST --plot docs/images/accuracy.png

``--against "column r=32 place=random"`` takes differences to slices that do not move, for instance. ``scores.py``
explains intervals and differences.
"""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.accuracy.plot import draw
from benchmarks.accuracy.run import CHOICES
from benchmarks.accuracy.scores import (
    REFERENCE,
    AllScores,
    Estimate,
    Scores,
    accuracy_tasks,
    broadest,
    difference,
    methods_of,
    read_scores,
    tasks_of,
)
from benchmarks.accuracy.tasks import TASKS
from benchmarks.harness.results import argument_parser, markdown_table, read_result


def tables(scores: AllScores, reference: str = REFERENCE) -> str:
    """Scores and differences of each network, then mean differences over all networks, in Markdown."""
    parts = []
    for network in dict.fromkeys(task.network for task in TASKS.values()):
        if tasks_of(scores, network):
            differences = difference_table(scores, network, reference)
            parts += [network, score_table(scores, network), f"Differences to {reference}", differences]
    parts += [f"Differences to {reference}, mean accuracy over all networks", mean_table(scores, reference)]
    return "\n\n".join(parts)


def score_table(scores: AllScores, network: str) -> str:
    """Methods by tasks: test score and, in brackets, learning rate; a star marks the outermost rate that was tried."""
    tasks = tasks_of(scores, network)
    lines = []
    for method in methods_of(scores, tasks):
        found = [scores.get((task, method)) for task in tasks]
        trained = next(each.trained for each in found if each is not None)
        lines.append([method, f"{trained:,}", *map(_score, tasks, found)])
    return markdown_table(["method", "trained", *(f"{task} ({TASKS[task].score})" for task in tasks)], lines)


def _score(task: str, scores: Scores | None) -> str:
    if scores is None:
        return "-"
    if scores.rate == 0:  # of a probe: one score, without seeds
        return f"{scores.tests[0]:.1f}"
    return f"{Estimate.of(scores.tests):{_digits(task)}} ({scores.rate:g}{'*' if scores.outermost else ''})"


def _digits(task: str) -> str:
    return ".3f" if TASKS[task].score == "perplexity" else ".1f"


def difference_table(scores: AllScores, network: str, reference: str = REFERENCE) -> str:
    """Differences to another method, on each task and in the mean of the tasks scored by accuracy."""
    tasks, lines = tasks_of(scores, network), []
    for method in methods_of(scores, tasks):
        found = [difference(scores, method, [task], reference) for task in tasks]
        if method == reference or not any(found):
            continue
        cells = [
            "-" if each is None else f"{each[0]:+{_digits(task)}}" for task, each in zip(tasks, found, strict=True)
        ]
        mean = difference(scores, method, accuracy_tasks(tasks), reference)
        lines.append([method, *cells, "-" if mean is None else f"{mean[0]:+.1f} ({mean[1]})"])
    return markdown_table(["method", *tasks, "mean accuracy (tasks)"], lines)


def mean_table(scores: AllScores, reference: str = REFERENCE) -> str:
    """Differences to another method in the mean of all tasks scored by accuracy, over all networks."""
    tasks, lines = accuracy_tasks(TASKS), []
    for method in methods_of(scores, tasks):
        found = difference(scores, method, tasks, reference)
        if method != reference and found is not None:
            lines.append([method, f"{found[0]:+.1f}", str(found[1])])
    return markdown_table(["method", "mean accuracy", "tasks"], lines)


def cost_table(scores: AllScores, costs: Mapping[str, Mapping[str, float]], network: str = "MiniLM") -> str:
    """Step time, memory beyond the weights and test accuracy, by step time, on the task with most methods."""
    task = broadest(scores, [task for task in accuracy_tasks(TASKS) if TASKS[task].network == network])
    lines = []
    for name in sorted(costs, key=lambda name: (round(costs[name]["time"], 2), costs[name]["memory_mb"])):
        if (task, name) in scores:
            mean = Estimate.of(scores[task, name].tests)
            lines.append([name, f"{costs[name]['time']:.2f}", f"{costs[name]['memory_mb']:.0f}", f"{mean:.1f}"])
    return markdown_table(["method", "step time / frozen baseline", "memory, MB", task], lines)


def main() -> None:
    """Print the tables; draw the plot."""
    parser = argument_parser(__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--against", default=REFERENCE, help=f"method that differences refer to (default: {REFERENCE})")
    parser.add_argument("--choose", choices=CHOICES, default="loss", help="validation value that chose the rates")
    parser.add_argument("--cost", type=Path, help="result of benchmarks.accuracy.cost")
    parser.add_argument("--plot", type=Path, help="PNG file of the plot")
    arguments = parser.parse_args()
    for path in (arguments.runs, arguments.cost):
        if path is not None and not path.is_file():
            parser.error(f"{path} does not exist; benchmarks.accuracy.run and .cost write such files.")
    scores = read_scores(arguments.runs, arguments.choose)
    finished = methods_of(scores, TASKS)
    if arguments.against not in finished:
        parser.error(f"No task has all seeds of {arguments.against!r}; finished are {', '.join(finished) or 'none'}.")
    costs = {} if arguments.cost is None else read_result(arguments.cost)["methods"]
    print(tables(scores, arguments.against))
    if costs:
        print(f"\nAt equal cost\n\n{cost_table(scores, costs)}")
    if arguments.plot is not None:
        draw(scores, costs, arguments.plot)


if __name__ == "__main__":
    main()
