"""What does SparsityCallback add to a training step?

python benchmarks/sparsity_step.py --network minilm --rounds 15 --out benchmarks/results/NAME.json

Three real Trainers train the same network (random weights, no dropout) on the same batch with AdamW and take turns, one
step each, so that a machine that slows down slows all of them: plain training; with SparsityCallback within its ramp;
with it after its ramp, at the final sparsity; and so with gradients clipped to a norm, plain and pruned.  A step lasts
from one batch that Lightning asks for to the next, so all hooks count; its time is the processor's (`thread_time`),
which leaves out what other programs take of a shared machine: run it with OMP_NUM_THREADS=1.  As neighbours still slow
the memory down from one moment to the next, the time spent inside the callback's hooks is given too: it varies less
than the ratio of two steps.  New masks, which come every 100 steps, are timed apart and divided by 100.

AdamW is torch's default one, or with --fused the one in a single kernel.  On Intel CPUs the first takes ten times as
long for the square root of a zero as for that of another number, and the memory of a pruned network has many: that is
no work of the callback's, and fused it is gone.

Beside it, what the callback does most: three ways to cut the weights of the network, all exact, in turns.
"""

import argparse
import copy
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from machine import machine, percentiles
from networks import NETWORKS, Task, build
from torch import Tensor

from slicefine_pl import SparsityCallback
from slicefine_pl.sparsity import NetworkMasks, parse_pattern
from slicefine_pl.sparsity.mask_tensors import apply_mask

INTERVAL = 100
WARM_UP = 3


class Training(LightningModule):
    """The task as a module."""

    def __init__(self, task: Task, fused: bool) -> None:
        super().__init__()
        self.net, self.loss, self.fused = task.net, task.loss, fused

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.loss(self.net)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.net.parameters(), lr=1e-4, fused=self.fused or None)


class Timed(SparsityCallback):
    """The callback, with the seconds that its hooks took in each step."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.own: list[float] = []

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        hook = super().on_before_optimizer_step
        self.own.append(processor_seconds(lambda: hook(trainer, pl_module, optimizer)))

    def _after_step(self, trainer: Trainer, optimizer: torch.optim.Optimizer, counts: bool) -> None:
        hook = super()._after_step
        self.own[-1] += processor_seconds(lambda: hook(trainer, optimizer, counts))


class Turns:
    """Lets several trainings take one step each in turn, and keeps their times.

    Args:
        names: Of the trainings, in the order of their turns.
        steps: Of each.
    """

    def __init__(self, names: list[str], steps: int) -> None:
        self.steps = steps
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self._next = dict(zip(names, [*names[1:], names[0]], strict=True))
        self._gates = {name: threading.Semaphore(name == names[0]) for name in names}

    def batches(self, name: str) -> Iterator[Tensor]:
        """The loader of one training: gives out a batch when it is its turn, and ends the turn when the next is due."""
        for _ in range(self.steps):
            self._gates[name].acquire()
            start = time.thread_time()
            yield torch.zeros(1)
            self.seconds[name].append(time.thread_time() - start)
            self.pass_on(name)

    def pass_on(self, name: str) -> None:
        """End a turn; also after the last step, which is not timed: Lightning asks for no batch beyond it."""
        self._gates[self._next[name]].release()


class Loader:
    """A loader of known length over such batches."""

    def __init__(self, turns: Turns, name: str) -> None:
        self._turns, self._name = turns, name

    def __iter__(self) -> Iterator[Tensor]:
        return self._turns.batches(self._name)

    def __len__(self) -> int:
        return self._turns.steps


def contestants(pattern: str, steps: int) -> dict[str, list[Timed]]:
    return {
        "plain": [],
        "ramp": [Timed(pattern=pattern, start=0, end=steps, interval=INTERVAL)],
        "after": [Timed(pattern=pattern, schedule="constant")],
        "plain, clipped": [],
        "after, clipped": [Timed(pattern=pattern, schedule="constant")],
    }


def compete(
    task: Task, pattern: str, rounds: int, fused: bool
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of every step of each training, and those within the callback, after the warm-up."""
    steps = rounds + WARM_UP + 1
    methods = contestants(pattern, steps)
    turns = Turns([*methods], steps)
    settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 1}

    def train(name: str) -> None:
        clip = 1.0 if name.endswith("clipped") else None
        trainer = Trainer(callbacks=[*methods[name]], gradient_clip_val=clip, **settings)
        try:
            trainer.fit(Training(copy.deepcopy(task), fused), Loader(turns, name))
        finally:
            turns.pass_on(name)

    threads = [threading.Thread(target=train, args=(name,)) for name in methods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own = {name: callback.own[WARM_UP:] for name, callbacks in methods.items() for callback in callbacks}
    return {name: seconds[WARM_UP:] for name, seconds in turns.seconds.items()}, own


def masks_seconds(task: Task, pattern: str, repeats: int = 5) -> float:
    """Median time of making new masks, putting them on the weights and on what AdamW remembers."""
    net = copy.deepcopy(task.net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    task.loss(net).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    masks = NetworkMasks(net, parse_pattern(pattern))

    def renew() -> None:
        masks.prune(0.5)
        masks.mask_optimizer_state(optimizer)

    return statistics.median(processor_seconds(renew) for _ in range(repeats))


def processor_seconds(action: Callable[[], object]) -> float:
    start = time.thread_time()
    action()
    return time.thread_time() - start


def ways_to_cut(task: Task, rounds: int) -> dict[str, dict[str, object]]:
    """Milliseconds that each way takes to cut all prunable weights once, and the bytes of its masks for a weight."""
    masks = NetworkMasks(copy.deepcopy(task.net), parse_pattern("unstructured"))
    masks.prune(0.5)
    weights = [each.parameter.detach() for each in masks.prunable.values()]
    keep = [masks[name] for name in masks.prunable]
    drop = [~mask for mask in keep]
    floats = [mask.to(weight.dtype) for mask, weight in zip(keep, weights, strict=True)]

    def each(action: Callable[[Tensor, Tensor], object], others: list[Tensor]) -> Callable[[], None]:
        def run() -> None:
            for weight, other in zip(weights, others, strict=True):
                action(weight, other)

        return run

    ways: dict[str, tuple[Callable[[], object], int]] = {
        "cut, bool mask in pieces (ours)": (each(apply_mask, keep), 1),
        "mul_ by the bool mask": (each(Tensor.mul_, keep), 1),
        "masked_fill_ by the inverse mask": (each(lambda weight, mask: weight.masked_fill_(mask, 0), drop), 1),
        "mul_ by a mask of the weight's type": (each(Tensor.mul_, floats), floats[0].element_size()),
        "_foreach_mul_ by such masks": (lambda: torch._foreach_mul_(weights, floats), floats[0].element_size()),
    }
    times = [{name: processor_seconds(way) for name, (way, _) in ways.items()} for _ in range(rounds + WARM_UP)][
        WARM_UP:
    ]
    return {
        name: {"ms": percentiles([1e3 * row[name] for row in times]), "bytes_per_weight": size}
        for name, (_, size) in ways.items()
    }


def measure(network: str, pattern: str, rounds: int, fused: bool) -> dict[str, Any]:
    """Run the whole comparison for one network."""
    task = build(network)
    seconds, own = compete(task, pattern, rounds, fused)
    plain = seconds["plain"]
    rows = {}
    for name, values in seconds.items():
        base = seconds["plain, clipped" if name.endswith("clipped") else "plain"]
        rows[name] = {
            "step_ms": percentiles([1e3 * value for value in values]),
            "time_vs_plain": percentiles([value / other for value, other in zip(values, base, strict=True)]),
            "hooks_vs_plain": percentiles([value / statistics.median(base) for value in own.get(name, [0.0])]),
        }
    masks = masks_seconds(task, pattern)
    return {
        "rows": rows,
        "masks_ms": round(1e3 * masks, 2),
        "masks_share": round(masks / INTERVAL / statistics.median(plain), 5),
        "ways_to_cut": ways_to_cut(task, rounds),
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["| training | step ms | time / plain (16th to 84th percentile) | in the hooks |", "|---|---|---|---|"]
    for name, row in result["rows"].items():
        ratio, hooks = row["time_vs_plain"], row["hooks_vs_plain"]
        spread = f"{ratio['median']:.3f} ({ratio['p16']:.3f}-{ratio['p84']:.3f})"
        share = f"{hooks['median']:.2%} ({hooks['p16']:.2%}-{hooks['p84']:.2%})"
        lines.append(f"| {name} | {row['step_ms']['median']:.0f} | {spread} | {share} |")
    lines += ["", f"New masks take {result['masks_ms']:.0f} ms: {result['masks_share']:.2%} of {INTERVAL} steps.", ""]
    lines += [
        "| cutting all weights once | ms (16th to 84th percentile) | bytes of masks per weight |",
        "|---|---|---|",
    ]
    for name, way in result["ways_to_cut"].items():
        ms = way["ms"]
        lines.append(f"| {name} | {ms['median']:.1f} ({ms['p16']:.1f}-{ms['p84']:.1f}) | {way['bytes_per_weight']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="minilm")
    parser.add_argument("--pattern", default="unstructured", help="as SparsityCallback takes it")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--fused", action="store_true", help="AdamW in a single kernel")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    arguments = parser.parse_args()
    result = measure(arguments.network, arguments.pattern, arguments.rounds, arguments.fused)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"machine": machine("cpu"), **result}, indent=1) + "\n")
    print(table(result), file=sys.stdout)


if __name__ == "__main__":
    main()
