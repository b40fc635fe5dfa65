"""Scores of the accuracy benchmark: the finished runs of each task and method, means, intervals and differences.

A task and method counts once all five seeds are trained at the learning rate that validation chose. An interval is
Student's, 95 %, over the seeds: it shows how a method varies from run to run on this split, not how another test set
would score. Differences are paired by seed; over several tasks, the mean of the tasks' differences is taken for each
seed.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import t as student

from benchmarks.accuracy.run import SEEDS, TUNING_SEEDS, tuning_loss
from benchmarks.accuracy.studies import ALLOWED, MethodConfig, studies
from benchmarks.accuracy.tasks import TASKS
from benchmarks.harness.results import Row, read_rows

REFERENCE = "lora r=16"


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
class Scores:
    """The five runs of a method on a task.

    Attributes:
        rate: The chosen learning rate; 0 for a probe, which is solved once.
        tests: Test score of each seed: accuracy and correlation in percent, perplexity as it is.
        trained: Number of parameters that the optimizer updates.
        outermost: Whether no higher, or no lower, rate was tried.
    """

    rate: float
    tests: tuple[float, ...]
    trained: int
    outermost: bool


AllScores = Mapping[tuple[str, str], Scores]  # by task and method


def read_scores(path: Path, choose: str = "loss") -> dict[tuple[str, str], Scores]:
    """Read the finished tasks and methods of a file.

    Raises:
        ValueError: The file has a method that ``studies.yaml`` does not have.
    """
    groups: dict[tuple[str, str], dict[float, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in read_rows(path):
        groups[row["task"], row["method"]][row["lr"]][row["seed"]] = row
    scores: dict[tuple[str, str], Scores] = {}
    for (task, method), found in groups.items():
        solved = config(method).kind == "probe"  # without seeds
        rate = 0.0 if solved else min(found, key=lambda each: _tuning_loss(task, found[each], choose))
        rows = found[rate]
        if solved or set(rows) >= set(SEEDS):
            scale = 1 if TASKS[task].score == "perplexity" else 100
            tests = tuple(scale * rows[0 if solved else seed]["test"] for seed in SEEDS)
            outermost = not solved and rate in (min(found), max(found))
            scores[task, method] = Scores(rate, tests, rows[0]["trained"], outermost)
    return scores


def config(method: str) -> MethodConfig:
    """Settings of a method.

    Raises:
        ValueError: ``studies.yaml`` does not have it.
    """
    if method not in studies().methods:
        raise ValueError(f"The method {method!r} is not in studies.yaml; add it there to read its results.")
    return studies().methods[method]


def _tuning_loss(task: str, rows: Mapping[int, Row], choose: str) -> float:
    """Sum over the tuning seeds; infinite if one is missing or not finite."""
    found = [tuning_loss(task, rows[seed], choose) if seed in rows else math.inf for seed in TUNING_SEEDS]
    return sum(found) if all(map(math.isfinite, found)) else math.inf


def in_order(methods: Iterable[str]) -> list[str]:
    """Sort by kind, then by rank, then by name."""
    kinds = list(ALLOWED)
    return sorted(methods, key=lambda name: (kinds.index(config(name).kind), config(name).rank, name))


def difference(
    scores: AllScores, method: str, tasks: Sequence[str], reference: str = REFERENCE
) -> tuple[Estimate, int] | None:
    """Score minus that of another method, and the number of tasks that have both; ``None`` if no task has."""
    both = [task for task in tasks if (task, method) in scores and (task, reference) in scores]
    pairs = [(scores[task, method].tests, scores[task, reference].tests) for task in both]
    if not pairs:
        return None
    means = [statistics.fmean(own[i] - other[i] for own, other in pairs) for i in range(len(SEEDS))]
    return Estimate.of(means), len(pairs)


def accuracy_tasks(tasks: Iterable[str]) -> list[str]:
    """The tasks whose accuracy counts in means over tasks."""
    return [task for task in tasks if TASKS[task].score == "accuracy" and TASKS[task].averaged]


def tasks_of(scores: AllScores, network: str) -> list[str]:
    """The network's tasks that have scores."""
    return [task for task in TASKS if TASKS[task].network == network and any(key[0] == task for key in scores)]


def methods_of(scores: AllScores, tasks: Iterable[str]) -> list[str]:
    """The methods that have scores on one of the tasks."""
    chosen = set(tasks)
    return in_order({method for task, method in scores if task in chosen})


def broadest(scores: AllScores, tasks: Sequence[str]) -> str:
    """The task with scores of most methods."""
    return max(tasks, key=lambda task: len(methods_of(scores, [task])))
