"""What does each method learn from the same data in the same number of steps?

python -m benchmarks.accuracy.run --tasks tweets products --study methods --out runs.jsonl

``studies.yaml`` lists the methods and studies, ``tasks.py`` the tasks. For each task and method:

1. The learning rate of the body is searched by doubling and halving. The mean validation loss of seeds 0 and 1
   decides. The search continues beyond its ends while that improves the loss by more than 1 %. ``--choose score``
   uses the validation score instead: over several epochs the loss can grow while the accuracy still rises.
2. Five seeds (0 to 4) are trained at that rate and scored on the test set, which takes no part in any choice.

``--seeds 3 --tuning-seeds 1`` makes fewer runs, for a task whose results vary little from seed to seed.

A seed sets the initial head, the order of the batches, dropout, and the positions of slices. The split of the data and
the head's learning rate are the same for all methods. The probe, a linear head on the frozen network, is solved on all
training data, also where the other methods see only part of it.

Every run appends a JSON line to the file. A run that is in the file is not repeated, so a stopped benchmark continues.
``benchmarks.accuracy.report`` makes tables and plots of the file.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything

from benchmarks.accuracy.preparation import NotApplicableError, prepare, randomize
from benchmarks.accuracy.studies import MethodConfig, studies
from benchmarks.accuracy.tasks import TASKS, Module, Task
from benchmarks.harness.lightning import QUIET
from benchmarks.harness.results import Row, RunLog, argument_parser, result_path
from slicefine_pl.callbacks.linear_probe import LinearProbe
from slicefine_pl.network.heads import find_heads

TUNING_SEEDS = (0, 1)
SEEDS = (0, 1, 2, 3, 4)
MIN_GAIN = 0.01  # relative improvement of the validation loss that continues the search
CHOICES = ("loss", "score")
Seeds = tuple[Sequence[int], Sequence[int]]  # those that choose a rate, and those that are trained at it


def train(task: Task, method: MethodConfig, rate: float, seed: int) -> Row:
    """One run; returns its scores, trained parameters and time."""
    seed_everything(seed, verbose=False)
    module, data = task.build(seed, rate, task.head_lr)
    with expected_frozen():
        callbacks = prepare(method, module, seed)
    start = time.perf_counter()
    trainer = fit(task, module, data, callbacks)
    seconds = time.perf_counter() - start
    groups = trainer.optimizers[0].param_groups
    trained = sum(value.numel() for group in groups for value in group["params"] if value.requires_grad)
    return {
        **score(task, module, data, trainer),
        "steps": trainer.global_step,
        "trained": trained,
        "seconds": round(seconds, 1),
    }


def fit(task: Task, module: Module, data: LightningDataModule, callbacks: list[Callback]) -> Trainer:
    """Train a prepared module as long as the task says; returns the trainer."""
    trainer = Trainer(**QUIET, max_epochs=task.epochs, limit_train_batches=task.batches, callbacks=callbacks)
    with expected_frozen():
        trainer.fit(module, data)
    return trainer


@contextmanager
def expected_frozen() -> Iterator[None]:
    """Silence the warning that lists what slices leave frozen: stems of three channels, depthwise convolutions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Left frozen")
        yield


def score(task: Task, module: Module, data: LightningDataModule, trainer: Trainer) -> Row:
    """Losses and scores of a trained module."""
    [val] = trainer.validate(module, data, verbose=False)
    [test] = trainer.test(module, data, verbose=False)
    return {
        "val_loss": val["val/loss"],
        "val": val[f"val/{task.score}"],
        "test": test[f"test/{task.score}"],
        "test_loss": test["test/loss"],
    }


def probe(task: Task, method: MethodConfig) -> Row:
    """Scores of a linear head on the frozen network, solved to its optimum on all training data."""
    if task.score == "perplexity":
        raise NotApplicableError("A language model does not have a new head.")
    seed_everything(0, verbose=False)
    module, data = task.build(0, 0.0, 0.0)
    if method.weights == "random":
        randomize(module.model)
    linear = LinearProbe()
    Trainer(**QUIET, max_epochs=0, callbacks=[linear]).fit(module, data)
    [head] = find_heads(module)
    return {
        "val": linear.scores["val"],
        "test": linear.scores["test"],
        "steps": 0,
        "trained": sum(parameter.numel() for parameter in head.module.parameters()),
        "seconds": round(linear.seconds, 1),
    }


def search(loss: Callable[[float], float], first: float) -> float:
    """Return the best of the rates ``first`` · 2^k that were tried.

    Tries the first rate, its half and its double. Continues where the outermost rate is better by ``MIN_GAIN``.

    Raises:
        RuntimeError: No loss was finite.
    """
    found: dict[int, float] = {}

    def at(power: int) -> float:
        value = loss(float(f"{first * 2.0**power:.3g}"))
        return value if math.isfinite(value) else math.inf

    for power in (0, -1, 1):
        found[power] = at(power)
    for outward in (-1, 1):
        edge = outward
        while found[edge] < (1 - MIN_GAIN) * min(value for power, value in found.items() if power != edge):
            edge += outward
            found[edge] = at(edge)
    if not any(map(math.isfinite, found.values())):
        raise RuntimeError(
            f"No run from {first / 2:g} to {2 * first:g} stayed finite; use a lower rate in first_rates."
        )
    return float(f"{first * 2.0 ** min(found, key=lambda power: found[power]):.3g}")


def tuning_loss(task: str, row: Mapping[str, Any], choose: str) -> float:
    """The value that the choice of a learning rate minimizes: the validation loss, or one minus the score.

    Equal scores are ordered by the loss. Perplexity is the exponential of the loss, so both choices agree.
    """
    if choose == "loss" or TASKS[task].score == "perplexity":
        return float(row["val_loss"])
    return 1 - float(row["val"]) + 1e-6 * float(row["val_loss"])


def first_rate(method: MethodConfig) -> float:
    """Where the search begins; slices that scale their rate begin with that of full fine-tuning."""
    return studies().first_rates["full" if method.lr_scale == "auto" else method.kind]


def compare(log: RunLog, task: str, name: str, choose: str = "loss", seeds: Seeds = (TUNING_SEEDS, SEEDS)) -> None:
    """Find the learning rate of a method with the first seeds, and train the others at that rate."""
    method = studies().methods[name]

    def run(rate: float, seed: int) -> Row:
        key = {"task": task, "method": name, "lr": rate, "seed": seed}
        if method.kind == "probe":
            return log.get(key, lambda: probe(TASKS[task], method))
        return log.get(key, lambda: train(TASKS[task], method, rate, seed))

    if method.kind == "probe":
        run(0.0, 0)
        return

    def loss(rate: float) -> float:
        return sum(tuning_loss(task, run(rate, seed), choose) for seed in seeds[0])

    rate = search(loss, first=first_rate(method))
    for seed in seeds[1]:
        run(rate, seed)


def main() -> None:
    """Make the runs that the file lacks."""
    known = studies()
    parser = argument_parser(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--study", choices=known.studies, help="a list of methods in studies.yaml")
    parser.add_argument("--methods", nargs="+", default=[], choices=known.methods, metavar="METHOD", help="names there")
    parser.add_argument("--choose", choices=CHOICES, default="loss", help="validation value that chooses the rate")
    parser.add_argument("--seeds", type=int, choices=range(1, 6), default=5, help="seeds trained at the chosen rate")
    parser.add_argument("--tuning-seeds", type=int, choices=(1, 2), default=2, help="seeds that choose the rate")
    parser.add_argument("--out", type=result_path, required=True)
    arguments = parser.parse_args()
    seeds = TUNING_SEEDS[: arguments.tuning_seeds], SEEDS[: arguments.seeds]
    names = [*(known.studies[arguments.study] if arguments.study else ()), *arguments.methods]
    if not names:
        parser.error("nothing to run; give --study methods, for instance, or --methods 'lora r=16'.")
    log = RunLog(arguments.out)
    for task in arguments.tasks:
        for name in names:
            try:
                compare(log, task, name, arguments.choose, seeds)
            except NotApplicableError as reason:
                print(f"{task}, {name}: left out. {reason}", flush=True)


if __name__ == "__main__":
    main()
