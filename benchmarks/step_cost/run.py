"""What does one training step cost: frozen baseline, slices, LoRA and its variants, BitFit, masked gradients, full?

python -m benchmarks.step_cost.run --network minilm --rank 8 --rounds 15 --out benchmarks/results/cost_minilm_r8.json
python -m benchmarks.step_cost.run --network llama --batch 2 --tokens 256 --compile
python -m benchmarks.step_cost.run --network resnet50 --methods "slice, column" "slice, directions"

All methods train the same network (random weights, no dropout) on the same batch with AdamW. In each round every
method takes one step, in a new random order, so that a machine that slows down slows all of them. The frozen baseline
trains only the head, with gradients down to the lowest layers that the other methods train; no method can be cheaper.
Slices move after each round, so their steps are timed at many positions; moves are timed separately. Before timing, a
slice of full width is checked against full training, and every method is checked to change only what it trains.

Reported for each method:

- step time, and the median of its ratio to the frozen baseline and to LoRA in the same round, with the 16th and 84th
  percentile; forward, backward and update (optimizer and clearing of gradients);
- seconds from the plain network to the end of the first step;
- bytes that autograd saves for backward, bytes of parameters, gradients and optimizer state;
- the allocator's peak on a GPU; on a CPU, the growth of a process of its own (``harness/rss.py``);
- bytes that are stored on disk.

The last table compares column slices with our thresholds.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Mapping

import torch

from benchmarks.harness.checks import check_against_full_training, check_changes
from benchmarks.harness.machine import Clock, machine, percentiles
from benchmarks.harness.memory import memory_of
from benchmarks.harness.methods import COMPILED, METHODS, Method
from benchmarks.harness.networks import NETWORKS, Workload, build
from benchmarks.harness.results import Row, argument_parser, result_path, write_result
from benchmarks.harness.rounds import interleaved
from benchmarks.harness.rss import SUPPORTED, rss_growth
from benchmarks.harness.training import PARTS, TrainingRun, prepare, require_compiler, timed_step
from benchmarks.step_cost.report import BASELINE, table, thresholds

REFERENCES = {"baseline": BASELINE, "lora": "lora"}  # what times and saved bytes are divided by


def prepare_all(
    workload: Workload, methods: Mapping[str, Method], rank: int, device: str
) -> tuple[dict[str, TrainingRun], dict[str, str]]:
    """Prepare and check methods; returns the runs, and why other methods are left out."""
    prepare(copy.deepcopy(workload), METHODS["full"], rank, device)  # start-up time of the process counts for no method
    runs, left_out = {}, {}
    for name, method in methods.items():
        print(f"{name}: first step", file=sys.stderr)
        try:
            runs[name] = prepare(copy.deepcopy(workload), method, rank, device)
        except ValueError as reason:
            left_out[name] = str(reason)
            print(f"{name} is left out: {reason}", file=sys.stderr)
            continue
        runs[name].step(Clock(device))
        check_changes(workload, runs[name], rank)
    return runs, left_out


def times_of(name: str, rounds: list[dict[str, dict[str, float]]]) -> Row:
    """Milliseconds and ratios of one method."""

    def ratio(other: str) -> dict[str, float]:
        return percentiles([times[name]["step"] / times[other]["step"] for times in rounds])

    row: Row = {"step_ms": percentiles([1e3 * times[name]["step"] for times in rounds])}
    row |= {f"time_vs_{key}": ratio(other) for key, other in REFERENCES.items()}
    if name in COMPILED:
        row |= {f"time_vs_compiled_{key}": ratio(f"{other}, compiled") for key, other in REFERENCES.items()}
    row |= {f"{part}_ms": percentiles([1e3 * times[name][part] for times in rounds]) for part in PARTS}
    if "move" in rounds[0][name]:
        move = statistics.mean(times[name]["move"] for times in rounds)
        row["move_ms"] = round(1e3 * move, 3)
        step = statistics.median(times[name]["step"] for times in rounds)
        row["move_share_at_interval_100"] = round(move / (100 * step), 6)
    return row


def measure(arguments: argparse.Namespace) -> Row:
    """Run the whole comparison for one network and rank."""
    sizes = {"batch": arguments.batch, "tokens": arguments.tokens}
    device, rank = arguments.device, arguments.rank
    workload = build(arguments.network, device=device, **sizes)
    check_against_full_training(workload.to(device, torch.float32))
    workload.to(device, getattr(torch, arguments.dtype))
    wanted = {*arguments.methods, *REFERENCES.values(), *(COMPILED if arguments.compile else ())}
    methods = {name: method for name, method in (METHODS | COMPILED).items() if name in wanted}
    runs, left_out = prepare_all(workload, methods, rank, device)
    memory = {name: memory_of(run, device) for name, run in runs.items()}
    rounds = list(interleaved(list(runs), lambda name, _: timed_step(runs[name], device), arguments.rounds))
    rows: dict[str, Row] = {}
    for name, run in runs.items():
        rss = None
        if arguments.rss and name in METHODS:
            print(f"{name}: RSS", file=sys.stderr)
            rss = round(rss_growth(arguments.network, name, rank, **sizes) / 1e6, 1)
        rows[name] = {
            **times_of(name, rounds),
            **memory[name],
            "rss_mb": rss,
            "startup_s": round(run.startup_seconds, 3),
            "trained": sum(parameter.numel() for parameter in run.trainable()),
            "sliced": None if run.handle is None else len(run.handle),
        }
        for key, other in REFERENCES.items():
            rows[name][f"saved_vs_{key}"] = _ratio(memory[name]["saved_mb"], memory[other]["saved_mb"])
    return {
        "network": arguments.network,
        "width": workload.width,
        "rank": rank,
        "dtype": arguments.dtype,
        "batch": {name: list(value.shape) for name, value in workload.batch.items()},
        "rounds": arguments.rounds,
        "targets": len(workload.targets()),
        "rows": rows,
        "left_out": left_out,
    }


def _ratio(value: float | None, other: float | None) -> float | None:
    return None if value is None or not other else round(value / other, 4)


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="minilm")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="beside baseline and LoRA")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, help="examples; the default depends on network and device")
    parser.add_argument("--tokens", type=int, help="tokens per text; likewise")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of all weights; on a GPU bfloat16 by default")
    parser.add_argument("--compile", action="store_true", help="add methods under torch.compile")
    parser.add_argument("--no-rss", dest="rss", action="store_false", help="do not start a process for each method")
    parser.add_argument("--out", type=result_path, help="JSON file of the result")
    arguments = parser.parse_args()
    if arguments.compile:
        require_compiler(arguments.device)
    arguments.dtype = arguments.dtype or ("bfloat16" if arguments.device == "cuda" else "float32")
    arguments.rss &= arguments.device == "cpu" and arguments.dtype == "float32" and SUPPORTED  # rss.py trains so
    return arguments


def main() -> None:
    arguments = parse_arguments()
    described = machine(arguments.device)  # before measuring: it contains the load
    result = measure(arguments)
    write_result(arguments.out, {"machine": described, **result})
    print(table(result), "", thresholds(result), sep="\n")


if __name__ == "__main__":
    main()
