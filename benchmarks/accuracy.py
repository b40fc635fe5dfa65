"""What does a method learn, beside the others, for the same data and the same steps?

python benchmarks/accuracy.py --out benchmarks/results/accuracy.jsonl --tasks tweets products --study methods

A run is a task (``tasks.py``), a method, a learning rate and a seed.  A method is a line of words:

    probe | bitfit | full
    lora r=16 | dora r=16                                 on every linear map and convolution, alpha = 2 r
    lora r=16 on=qv                                       on queries and values alone, the choice of LoRA's authors
    column r=32 every=100 order=random                    or row, alternate; order sweep, importance
    column r=32 place=random                              never moved; or place=first, place=last
    column r=128 place=random on=qv                       in queries and values alone
    ... weights=random                                    the same from a network that was never pretrained

For each task and method the learning rate is searched by doubling and halving: the mean validation loss over the seeds
0 and 1 decides, and the search goes on past its ends while that still gains a hundredth.  ``--choose score`` takes the
mean validation score instead: over several epochs the loss grows with the confidence while the accuracy still rises.
(One text more suffices there to go on.)
Five seeds (0 to 4) are trained at that rate and scored on the test set, which takes no part in any choice.  A seed
decides the new head's start, the order of the batches, dropout, and where slices lie; the split of the data is fixed.
The head's own rate is the same for all methods.  The linear head (probe) is solved, on all training data, also where
the others get fewer steps than an epoch.  A line of JSON a run is added to the file, and a run that stands there is
not repeated, so that a stopped benchmark goes on.  ``accuracy_report.py`` makes tables and plots of the file.
"""

import argparse
import json
import math
import re
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import methods
import torch
from lightning.pytorch import Callback, seed_everything
from machine import commit
from tasks import TASKS, Module, Task, quiet_trainer
from torch import nn
from transformers import PreTrainedModel

from slicefine_pl import SliceFineCallback
from slicefine_pl.callbacks.linear_probe import LinearProbe
from slicefine_pl.slicing import slice_model
from slicefine_pl.slicing.heads import find_heads

TUNING_SEEDS = (0, 1)
SEEDS = (0, 1, 2, 3, 4)
WORTH = 0.01  # by what share of the validation loss another rate must be better for the search to go on
STUDIES = {
    "methods": (
        "probe",
        "bitfit",
        "lora r=16",
        "lora r=16 on=qv",
        "dora r=16",
        "column r=32 place=random",
        "column r=32 every=100",
        "row r=32 every=100",
        "alternate r=32 every=100",
        "full",
    ),
    "rank": (
        "lora r=1",
        "lora r=4",
        "lora r=64",
        "column r=1 every=100",
        "column r=8 every=100",
        "column r=64 every=100",
        "column r=128 every=100",
        "column r=128 place=random",
    ),
    "movement": (
        "column r=32 every=10",
        "column r=32 every=30",
        "column r=32 every=100 order=sweep",
        "column r=32 every=100 order=importance",
        "column r=8 place=random",
        "column r=8 every=30",
        "column r=8 every=30 order=importance",
    ),
    "long": (  # for "tweets, 4 epochs"
        "lora r=16",
        "column r=8 place=random",
        "column r=8 every=100",
        "column r=32 place=random",
        "column r=32 every=100",
    ),
    "queries": ("column r=16 place=random on=qv", "column r=128 place=random on=qv"),
    "place": ("column r=32 place=first", "column r=32 place=last"),
    "unpretrained": ("probe weights=random", "column r=32 every=100 weights=random", "full weights=random"),
}
DIFFER_IN_COST = [line for study in ("methods", "rank", "queries") for line in STUDIES[study] if line != "probe"]
SLICES = ("column", "row", "alternate")
PLACED: dict[str, tuple[str, ...] | None] = {
    "r": None,
    "on": ("qv",),
    "every": None,
    "order": ("random", "sweep", "importance"),
    "place": ("random", "first", "last"),
}
ALLOWED: dict[str, dict[str, tuple[str, ...] | None]] = {  # what each kind can be told; None takes any number
    "probe": {},
    "bitfit": {},
    "full": {},
    "lora": {"r": None, "on": ("qv",)},
    "dora": {"r": None},
    **{axis: PLACED for axis in SLICES},
}
CHOICES = ("loss", "score")
FIRST_RATES = {"full": 1e-4, "lora": 1e-3, "dora": 1e-3, "bitfit": 4e-3, "column": 2e-3, "row": 2e-3, "alternate": 2e-3}


@dataclass(frozen=True)
class Method:
    """One of the lines above, taken apart."""

    name: str
    kind: str
    settings: dict[str, str] = field(hash=False)

    @classmethod
    def parse(cls, line: str) -> "Method":
        """Take a line apart.

        Raises:
            ValueError: If a method or a setting is unknown, said twice or missing, or settings contradict each other.
        """
        kind, *pairs = line.split()
        if kind not in ALLOWED:
            raise ValueError(f"Unknown method {kind!r} in {line!r}; known are {', '.join(ALLOWED)}.")
        allowed: dict[str, tuple[str, ...] | None] = {**ALLOWED[kind], "weights": ("random",)}
        settings: dict[str, str] = {}
        for pair in pairs:
            name, _, value = pair.partition("=")
            if name not in allowed:
                raise ValueError(f"{kind} has no setting {name!r} (in {line!r}); it has {', '.join(allowed)}.")
            choices = allowed[name]
            if not (value.isdigit() and int(value) > 0 if choices is None else value in choices):
                raise ValueError(f"{pair!r} in {line!r}: {name} is {' or '.join(choices or ('a whole number > 0',))}.")
            if name in settings:
                raise ValueError(f"{line!r} says {name} twice.")
            settings[name] = value
        if "r" in allowed and "r" not in settings:
            raise ValueError(f"{line!r} says no rank; add r=16, for instance.")
        if kind in SLICES and ("every" in settings) == ("place" in settings):
            raise ValueError(f"{line!r}: slices move (every=100) or stay (place=random); say one of the two.")
        if "order" in settings and "place" in settings:
            raise ValueError(f"{line!r}: slices that stay have no order; leave out order=.")
        return cls(line, kind, settings)

    @property
    def rank(self) -> int:
        return int(self.settings.get("r", 1))


class NotThereError(Exception):
    """A method has nothing to train in a network, or is not known there; the message says why."""


def prepare(method: Method, module: Module, seed: int) -> list[Callback]:
    """Make a module ready to be trained by a method, in place.

    Returns:
        The callbacks that the run needs.
    """
    net = module.model
    if method.settings.get("weights") == "random":
        forget(net)
    if method.kind in SLICES:
        if "place" not in method.settings:
            return [moving_slices(method, seed, named(method, net))]
        fixed_slices(net, method, seed, named(method, net))
    else:
        try:
            methods.METHODS[method.kind](net, head_of(net), layers_of(method, net), method.rank)
        except ValueError as reason:
            raise NotThereError(str(reason)) from reason
    return []


def layers_of(method: Method, net: nn.Module) -> list[str]:
    """The layers that a method works on."""
    return methods.queries_and_values(targets(net)) if "on" in method.settings else targets(net)


def named(method: Method, net: nn.Module) -> list[str] | None:
    """Patterns of the layers that slices lie in, with or without a module around the network; ``None`` for all."""
    if "on" not in method.settings:
        return None
    try:
        return [rf"(^|\.){re.escape(name)}$" for name in layers_of(method, net)]
    except ValueError as reason:
        raise NotThereError(str(reason)) from reason


def head_of(net: nn.Module) -> str | None:
    """Name of the new output head, if there is one."""
    return next((found.name for found in find_heads(net) if not found.pretrained), None)


def targets(net: nn.Module) -> list[str]:
    """The layers that slices would lie in, which the adapters get as well."""
    handle = slice_model(net, rank=32)
    names = [live.name for live in handle]
    handle.close()
    return names


def moving_slices(method: Method, seed: int, layers: list[str] | None) -> SliceFineCallback:
    return SliceFineCallback(
        targets=layers,
        rank=method.rank,
        axis=method.kind,  # type: ignore[arg-type]
        interval=int(method.settings["every"]),
        order=method.settings.get("order", "random"),  # type: ignore[arg-type]
        seed=seed,
    )


def fixed_slices(net: nn.Module, method: Method, seed: int, layers: list[str] | None = None) -> None:
    """Open slices that never move: at the lowest, at the highest, or at random columns of each matrix."""
    handle = slice_model(net, rank=method.rank, axis=method.kind, targets=layers, seed=seed)  # type: ignore[arg-type]
    place, state = method.settings["place"], handle.state_dict()
    if place == "random":
        return
    for name, each in state["slices"].items():
        size = len(each["visited"][each["axis"]])
        first = {"first": 0, "last": size - method.rank}[place]
        state["slices"][name]["index"] = torch.arange(first, first + method.rank)
    handle.load_state_dict(state)


def forget(net: Any) -> None:
    """Replace all weights by random ones, drawn as the architecture draws them."""
    if not isinstance(net, PreTrainedModel):
        raise NotThereError("weights=random is known for models of transformers only.")
    net.load_state_dict(type(net)(net.config).state_dict())


def train(task: Task, method: Method, rate: float, seed: int) -> dict[str, Any]:
    """One run; returns its scores, trained parameters and time."""
    seed_everything(seed, verbose=False)
    module, data = task.build(seed, rate, task.head_lr)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Left frozen")  # stems with three channels, depthwise convolutions
        trainer = quiet_trainer(task.epochs, prepare(method, module, seed), task.batches)
        start = time.perf_counter()
        trainer.fit(module, data)
    seconds = time.perf_counter() - start
    groups = trainer.optimizers[0].param_groups
    trained = sum(value.numel() for group in groups for value in group["params"] if value.requires_grad)
    [val] = trainer.validate(module, data, verbose=False)
    [test] = trainer.test(module, data, verbose=False)
    return {
        "val_loss": val["val/loss"],
        "val": val[f"val/{task.score}"],
        "test": test[f"test/{task.score}"],
        "test_loss": test["test/loss"],
        "steps": trainer.global_step,
        "trained": trained,
        "seconds": round(seconds, 1),
    }


def probe(task: Task, method: Method) -> dict[str, Any]:
    """Scores of a linear head on the frozen network, solved to its optimum: no rate, no seed, all training data."""
    if task.score == "perplexity":
        raise NotThereError("a language model has no new head.")
    seed_everything(0, verbose=False)
    module, data = task.build(0, 0.0, 0.0)
    if method.settings.get("weights") == "random":
        forget(module.model)
    linear = LinearProbe()
    trainer = quiet_trainer(0, [linear])
    trainer.fit(module, data)
    [head] = find_heads(module)
    return {
        "val": linear.scores["val"],
        "test": linear.scores["test"],
        "steps": 0,
        "trained": sum(parameter.numel() for parameter in head.module.parameters()),
        "seconds": round(linear.seconds, 1),
    }


class Runs:
    """All runs in a file; each is made once."""

    def __init__(self, path: Path, commit: str) -> None:
        self._path, self._commit = path, commit
        path.parent.mkdir(parents=True, exist_ok=True)

    def get(self, task: str, method: Method, rate: float, seed: int) -> dict[str, Any]:
        """Return a run's line; makes the run if it is not in the file."""
        key = {"task": task, "method": method.name, "lr": rate, "seed": seed}
        for row in self._read():
            if all(row[name] == value for name, value in key.items()):
                return row
        made = probe(TASKS[task], method) if method.kind == "probe" else train(TASKS[task], method, rate, seed)
        row = {**key, **made, "commit": self._commit}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(" · ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        return row

    def _read(self) -> list[dict[str, Any]]:
        """Read anew each time: another process may work on other tasks of the same file."""
        return [json.loads(line) for line in self._path.read_text().splitlines()] if self._path.exists() else []


def search(loss: Callable[[float], float], first: float) -> float:
    """The best of the rates ``first`` · 2^k that were tried.

    Tries the first, its half and its double, and goes on where the outermost is better by more than ``WORTH``.
    """
    found: dict[int, float] = {}

    def at(power: int) -> float:
        value = loss(float(f"{first * 2.0**power:.3g}"))
        return value if math.isfinite(value) else math.inf

    for power in (0, -1, 1):
        found[power] = at(power)
    for outward in (-1, 1):
        edge = outward
        while found[edge] < (1 - WORTH) * min(value for power, value in found.items() if power != edge):
            edge += outward
            found[edge] = at(edge)
    if not any(map(math.isfinite, found.values())):
        raise RuntimeError(f"No run from {first / 2:g} to {2 * first:g} stayed finite; begin lower in FIRST_RATES.")
    return float(f"{first * 2.0 ** min(found, key=lambda power: found[power]):.3g}")


def miss(task: str, row: Mapping[str, Any], choose: str) -> float:
    """What the choice of a learning rate makes small on validation: the loss, or what is missing to a perfect score.

    Equal scores are told apart by the loss; a language model's perplexity is the exponential of its loss.
    """
    if choose == "loss" or TASKS[task].score == "perplexity":
        return float(row["val_loss"])
    return 1 - float(row["val"]) + 1e-6 * float(row["val_loss"])


def compare(runs: Runs, task: str, method: Method, choose: str = "loss") -> None:
    """Find the rate of a method, and train its seeds."""
    if method.kind == "probe":
        runs.get(task, method, 0.0, 0)
        return

    def loss(rate: float) -> float:
        return sum(miss(task, runs.get(task, method, rate, seed), choose) for seed in TUNING_SEEDS)

    rate = search(loss, first=FIRST_RATES[method.kind])
    for seed in SEEDS:
        runs.get(task, method, rate, seed)


def main() -> None:
    """Make what runs are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--study", choices=STUDIES, help="a list of methods; see STUDIES")
    parser.add_argument("--methods", nargs="+", default=[], help="methods, each a line in quotes")
    parser.add_argument(
        "--choose", choices=CHOICES, default="loss", help="what of validation chooses the learning rate"
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    runs = Runs(arguments.out, commit())
    lines = [*(STUDIES[arguments.study] if arguments.study else ()), *arguments.methods]
    if not lines:
        parser.error("nothing to run; give --study methods, for instance, or --methods 'lora r=16'.")
    try:
        wanted = [Method.parse(line) for line in lines]
    except ValueError as reason:
        parser.error(str(reason))
    for task in arguments.tasks:
        for method in wanted:
            try:
                compare(runs, task, method, arguments.choose)
            except NotThereError as reason:
                print(f"{task}, {method.name}: left out. {reason}", flush=True)


if __name__ == "__main__":
    main()
