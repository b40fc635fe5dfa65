"""How much time does SparsityCallback add to a training step?

OMP_NUM_THREADS=1 python -m benchmarks.pruning.step_cost --network minilm --rounds 15 --out FILE

Five Trainers train the same network (random weights, no dropout) on the same batch with AdamW and take one step each in
turn, so that a machine that slows down slows all of them:

- plain training;
- with SparsityCallback within its ramp, and after its ramp, at the final sparsity;
- with gradients clipped to a norm, plain and after the ramp.

A step lasts from one batch that Lightning requests to the next, so all hooks count. Its time is processor time
(``thread_time``), which excludes other programs on a shared machine. Other programs still slow the memory down, so the
time inside the callback's hooks is reported too; it varies less than the ratio of two steps. New masks come every 100
steps; they are timed separately and divided by 100.

AdamW is torch's default implementation, or the single kernel with --fused. On Intel CPUs the default takes ten times
as long for the square root of a zero as for that of another number, and a pruned network has many zeros. That is not
the callback's work, and with --fused it disappears.

Also measured: five exact ways to mask all weights of the network, in turns.
"""

import copy
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from benchmarks.harness.lightning import QUIET, WorkloadModule
from benchmarks.harness.machine import machine, percentiles
from benchmarks.harness.networks import NETWORKS, Workload, build
from benchmarks.harness.results import Row, argument_parser, markdown_table, result_path, with_spread, write_result
from benchmarks.harness.rounds import WARM_UP, interleaved
from slicefine_pl import SparsityCallback
from slicefine_pl.sparsity import NetworkMasks, parse_pattern
from slicefine_pl.sparsity.mask_tensors import apply_mask

INTERVAL = 100  # steps between new masks


class Timed(SparsityCallback):
    """The callback, with the seconds of its hooks in each step."""

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
    """Let several trainings take one step each in turn, and record their times.

    Args:
        names: Names of the trainings, in the order of their turns.
        steps: Steps of each training.
    """

    def __init__(self, names: list[str], steps: int) -> None:
        self.steps = steps
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self._next = dict(zip(names, [*names[1:], names[0]], strict=True))
        self._gates = {name: threading.Semaphore(name == names[0]) for name in names}

    def batches(self, name: str) -> Iterator[Tensor]:
        """Batches of one training: one per turn; the request for the next batch ends the turn."""
        for _ in range(self.steps):
            self._gates[name].acquire()
            start = time.thread_time()
            yield torch.zeros(1)
            self.seconds[name].append(time.thread_time() - start)
            self.pass_on(name)

    def pass_on(self, name: str) -> None:
        """End a turn. The last step is not timed, because Lightning requests no batch after it."""
        self._gates[self._next[name]].release()


class Loader:
    """A loader of known length over these batches."""

    def __init__(self, turns: Turns, name: str) -> None:
        self._turns, self._name = turns, name

    def __iter__(self) -> Iterator[Tensor]:
        return self._turns.batches(self._name)

    def __len__(self) -> int:
        return self._turns.steps


def callbacks(pattern: str, steps: int) -> dict[str, list[Timed]]:
    """The callbacks of each training."""
    return {
        "plain": [],
        "ramp": [Timed(pattern=pattern, start=0, end=steps, interval=INTERVAL)],
        "after": [Timed(pattern=pattern, schedule="constant")],
        "plain, clipped": [],
        "after, clipped": [Timed(pattern=pattern, schedule="constant")],
    }


def train_in_turns(
    workload: Workload, pattern: str, rounds: int, fused: bool
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of every step of each training, and those within the callback, after the warm-up."""
    steps = rounds + WARM_UP + 1
    used = callbacks(pattern, steps)
    turns = Turns([*used], steps)

    def train(name: str) -> None:
        clip = 1.0 if name.endswith("clipped") else None
        trainer = Trainer(**QUIET, max_epochs=1, callbacks=[*used[name]], gradient_clip_val=clip)
        try:
            trainer.fit(WorkloadModule(copy.deepcopy(workload), fused), Loader(turns, name))
        finally:
            turns.pass_on(name)

    threads = [threading.Thread(target=train, args=(name,)) for name in used]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own = {name: callback.own[WARM_UP:] for name, each in used.items() for callback in each}
    return {name: seconds[WARM_UP:] for name, seconds in turns.seconds.items()}, own


def masks_seconds(workload: Workload, pattern: str, repeats: int = 5) -> float:
    """Median time to make new masks and apply them to the weights and to AdamW's state."""
    net = copy.deepcopy(workload.net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    workload.loss(net).backward()  # type: ignore[no-untyped-call]
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


def ways_to_mask(workload: Workload, rounds: int) -> dict[str, dict[str, object]]:
    """Milliseconds that each way takes to mask all prunable weights once, and the bytes of its masks per weight."""
    masks = NetworkMasks(copy.deepcopy(workload.net), parse_pattern("unstructured"))
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
        "bool mask in pieces (ours)": (each(apply_mask, keep), 1),
        "mul_ by the bool mask": (each(Tensor.mul_, keep), 1),
        "masked_fill_ by the inverse mask": (each(lambda weight, mask: weight.masked_fill_(mask, 0), drop), 1),
        "mul_ by a mask of the weight's type": (each(Tensor.mul_, floats), floats[0].element_size()),
        "_foreach_mul_ by such masks": (lambda: torch._foreach_mul_(weights, floats), floats[0].element_size()),
    }
    times = list(interleaved(list(ways), lambda name, _: processor_seconds(ways[name][0]), rounds))
    return {
        name: {"ms": percentiles([1e3 * row[name] for row in times]), "bytes_per_weight": size}
        for name, (_, size) in ways.items()
    }


def measure(network: str, pattern: str, rounds: int, fused: bool) -> Row:
    """Run the whole comparison for one network."""
    workload = build(network)
    seconds, own = train_in_turns(workload, pattern, rounds, fused)
    plain = seconds["plain"]
    rows = {}
    for name, values in seconds.items():
        base = seconds["plain, clipped" if name.endswith("clipped") else "plain"]
        rows[name] = {
            "step_ms": percentiles([1e3 * value for value in values]),
            "time_vs_plain": percentiles([value / other for value, other in zip(values, base, strict=True)]),
            "hooks_vs_plain": percentiles([value / statistics.median(base) for value in own.get(name, [0.0])]),
        }
    masks = masks_seconds(workload, pattern)
    return {
        "rows": rows,
        "masks_ms": round(1e3 * masks, 2),
        "masks_share": round(masks / INTERVAL / statistics.median(plain), 5),
        "ways_to_mask": ways_to_mask(workload, rounds),
    }


def table(result: Row) -> str:
    """The result as Markdown."""
    steps = markdown_table(
        ["training", "step ms", "time / plain (16th to 84th percentile)", "in the hooks"],
        [
            [
                name,
                f"{row['step_ms']['median']:.0f}",
                with_spread(row["time_vs_plain"], ".3f"),
                with_spread(row["hooks_vs_plain"], ".2%"),
            ]
            for name, row in result["rows"].items()
        ],
    )
    masks = f"New masks take {result['masks_ms']:.0f} ms: {result['masks_share']:.2%} of {INTERVAL} steps."
    ways = markdown_table(
        ["masking all weights once", "ms (16th to 84th percentile)", "bytes of masks per weight"],
        [
            [name, with_spread(way["ms"], ".1f"), str(way["bytes_per_weight"])]
            for name, way in result["ways_to_mask"].items()
        ],
    )
    return f"{steps}\n\n{masks}\n\n{ways}"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="minilm")
    parser.add_argument("--pattern", default="unstructured", help="pattern of SparsityCallback")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--fused", action="store_true", help="AdamW as a single kernel")
    parser.add_argument("--out", type=result_path, help="JSON file of the result")
    arguments = parser.parse_args()
    described = machine("cpu")  # before measuring: it contains the load
    result = measure(arguments.network, arguments.pattern, arguments.rounds, arguments.fused)
    write_result(arguments.out, {"machine": described, **result})
    print(table(result))


if __name__ == "__main__":
    main()
