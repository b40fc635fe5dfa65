"""What does a step of each method of ``accuracy.py`` cost, on the network and the batches that it learns from?

python benchmarks/accuracy_cost.py --task reviews --rounds 15 --out benchmarks/results/accuracy_cost.json

All methods take turns within a round, each with the same batch of the task's training data; the next round has the next
batch.  The floor is that of ``train_step.py``.  Memory is what a step needs beyond the plain network's weights: added
parameters, gradients, optimizer state, and what autograd keeps of the longest of these batches.
"""

import argparse
import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

import methods
import torch.nn.functional as F
from accuracy import DIFFER_IN_COST, Method, head_of, named, prepare, targets
from contestants import Contestant, adamw
from contestants import Method as Entry
from interleave import WARM_UP, one_round
from machine import machine, percentiles
from networks import Task
from tasks import TASKS
from torch import Tensor, nn
from train_step import bytes_of

from slicefine_pl.slicing import SliceHandle, slice_model

FLOOR = "floor"
LINES = [FLOOR, *DIFFER_IN_COST]


def loss(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(net(batch), batch["labels"])


def enter(task: str, line: str, batch: dict[str, Tensor]) -> Contestant:
    """A network that is ready for one of the methods; slices that move are opened without the callback."""
    module, _ = TASKS[task].build(0, 1e-4, 1e-3)
    handle: SliceHandle | None = None
    if line == FLOOR:
        methods.floor(module.model, head_of(module.model), targets(module.model), 1)
    elif "every" in (method := Method.parse(line)).settings:
        layers = named(method, module.model)
        handle = slice_model(module.model, rank=method.rank, axis=method.kind, targets=layers)  # type: ignore[arg-type]
        handle.write_manually()  # the contestant writes after each step, as the callback does
    else:
        prepare(method, module, 0)
    own = Task(module.train(), batch, loss, head="")
    entry = Entry(lambda task, rank: None, moves=handle is not None)
    contestant = Contestant(own, entry, module, None, handle)
    contestant.optimizer = adamw(contestant.trained())
    return contestant


def measure(task: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Time and memory of every method."""
    _, data = TASKS[task].build(0, 1e-4, 1e-3)
    data.prepare_data()
    data.setup("fit")
    batches = [dict(batch) for batch in itertools.islice(data.train_dataloader(), rounds + WARM_UP)]
    longest = max(batches, key=lambda batch: batch["input_ids"].shape[1])
    entered = {}
    for line in LINES:
        print(f"{line}: made ready", file=sys.stderr)
        entered[line] = enter(task, line, longest)
    order, times = random.Random(0), []
    for turn, batch in enumerate(batches):
        for one in entered.values():
            one.task.batch = batch
        seconds = one_round(entered, order, "cpu")
        if turn >= WARM_UP:
            times.append({line: parts["step"] for line, parts in seconds.items()})
            print(f"round {len(times)} of {rounds}", file=sys.stderr)
    kept: dict[str, dict[str, Any]] = {}
    for line, one in entered.items():
        one.task.batch = longest
        kept[line] = bytes_of(one, "cpu")
    rows: dict[str, dict[str, Any]] = {}
    for line, each in kept.items():
        ratio = percentiles([row[line] / row[FLOOR] for row in times])
        memory = {"memory_mb": round(each["sum_mb"] - kept[FLOOR]["parameters_mb"], 2), "saved_mb": each["saved_mb"]}
        rows[line] = {"time": ratio["median"], "time_spread": [ratio["p16"], ratio["p84"]], **memory}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("tweets", "products", "editorials", "reviews"), default="reviews")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    told = machine("cpu")
    found = measure(arguments.task, arguments.rounds)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": told, "task": arguments.task, "methods": found}, indent=1) + "\n")
    for line, row in found.items():
        print(f"| {line} | {row['time']:.2f} | {row['memory_mb']:.1f} |")


if __name__ == "__main__":
    main()
