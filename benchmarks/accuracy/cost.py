"""What does a step of each method of the accuracy benchmark cost, on the same network and batches?

python -m benchmarks.accuracy.cost --task reviews --rounds 40 --out benchmarks/results/accuracy_cost.json

In each round all methods take a step on the same batch of the task's training data; the next round uses the next
batch. Step times are divided by that of the frozen baseline. Memory is what a step needs beyond the weights of the
plain network: added parameters, gradients, optimizer state, and what autograd saves for the longest of the batches.
"""

import itertools
import sys
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.accuracy.preparation import layers_of, new_head, prepare, targets
from benchmarks.accuracy.studies import studies
from benchmarks.accuracy.tasks import TASKS
from benchmarks.harness.machine import machine, percentiles
from benchmarks.harness.memory import memory_of
from benchmarks.harness.methods import METHODS, Method, slices
from benchmarks.harness.networks import Workload
from benchmarks.harness.results import Row, argument_parser, markdown_table, result_path, write_result
from benchmarks.harness.rounds import WARM_UP, interleaved
from benchmarks.harness.training import TrainingRun, adamw, timed_step

BASELINE = "frozen baseline"
PREPARED = Method(lambda *_: None)  # for a network that was prepared by other means


def loss(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(net(batch), batch["labels"])


def prepare_run(task: str, name: str, batch: dict[str, Tensor]) -> TrainingRun:
    """A run of one method; slices that move are opened without the callback."""
    module, _ = TASKS[task].build(0, 1e-4, 1e-3)
    net, method, handle = module.model, PREPARED, None
    if name == BASELINE:
        METHODS[BASELINE].prepare(net, new_head(net), targets(net), 1)
    elif (config := studies().methods[name]).interval is not None:
        prepare_slices = slices(config.kind, config.lr_scale)  # type: ignore[arg-type]
        method = replace(METHODS[f"slice, {config.kind}"], prepare=prepare_slices)
        handle = method.prepare(net, new_head(net), layers_of(config, net), config.rank)
    else:
        prepare(config, module, 0)
    run = TrainingRun(Workload(module.train(), batch, loss, head=""), method, module, handle)
    run.optimizer = adamw(run.trainable())
    return run


def measure(task: str, names: list[str], rounds: int) -> dict[str, Row]:
    """Time and memory of every method."""
    _, data = TASKS[task].build(0, 1e-4, 1e-3)
    data.prepare_data()
    data.setup("fit")
    batches = [dict(batch) for batch in itertools.islice(data.train_dataloader(), rounds + WARM_UP)]
    longest = max(batches, key=lambda batch: batch["input_ids"].shape[1])
    runs = {}
    for name in names:
        print(f"{name}: prepared", file=sys.stderr)
        runs[name] = prepare_run(task, name, longest)

    def step(name: str, number: int) -> float:
        runs[name].workload.batch = batches[number]
        return timed_step(runs[name], "cpu")["step"]

    times = list(interleaved(names, step, rounds))
    for run in runs.values():
        run.workload.batch = longest
    memory = {name: memory_of(run, "cpu") for name, run in runs.items()}
    plain = memory[BASELINE]["parameters_mb"]
    rows: dict[str, Row] = {}
    for name in names:
        ratio = percentiles([row[name] / row[BASELINE] for row in times])
        rows[name] = {
            "time": ratio["median"],
            "time_spread": [ratio["p16"], ratio["p84"]],
            "memory_mb": round(memory[name]["sum_mb"] - plain, 2),
            "saved_mb": memory[name]["saved_mb"],
        }
    return rows


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--task", choices=("tweets", "products", "editorials", "reviews"), default="reviews")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=result_path, required=True)
    arguments = parser.parse_args()
    described = machine("cpu")  # before measuring: it contains the load
    rows = measure(arguments.task, [BASELINE, *studies().differ_in_cost], arguments.rounds)
    write_result(arguments.out, {"machine": described, "task": arguments.task, "methods": rows})
    lines = [[name, f"{row['time']:.2f}", f"{row['memory_mb']:.1f}"] for name, row in rows.items()]
    print(markdown_table(["method", "step time / frozen baseline", "memory, MB"], lines))


if __name__ == "__main__":
    main()
