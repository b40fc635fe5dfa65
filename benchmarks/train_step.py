"""What does a training step cost: a frozen network, slices, LoRA and its kin, BitFit, masked gradients, full training?

python benchmarks/train_step.py --network minilm --rank 8 --rounds 15 --out benchmarks/results/NAME.json
python benchmarks/train_step.py --network llama --batch 2 --tokens 256 --compile

All methods train the same network (random weights, no dropout) on the same batch with AdamW, one after the other within
each round, in an order that is drawn anew for every round, so that a machine that slows down slows all of them.  The
floor is a frozen network through which the gradient flows to the lowest layers that the others train: none of them can
do with less.  Slices move after each round, so that their steps are taken at ever other places; the moves are timed
apart.  Before anything is timed, a slice of full width is checked against full training, and every method for having
changed nothing but what it trains.

Reported per method: step time, and the median of its ratio to the floor and to LoRA in the same round, with the 16th
and 84th percentile; forward, backward and update (optimizer, clearing of gradients) apart; seconds from the plain
network to the end of the first step; and bytes: what autograd saves for backward, parameters, gradients and optimizer
state beside it, the allocator's peak on a GPU, the growth of the resident set of a process of its own on a CPU
(``resident.py``), and what is stored on disk.  The last lines say which of our bars are met.
"""

import argparse
import copy
import json
import statistics
import sys
from pathlib import Path

import resident
import torch
from contestants import (
    COMPILED,
    METHODS,
    PARTS,
    Contestant,
    check_against_full_training,
    check_changes,
    enter,
    refuse_without_compiler,
)
from interleave import Round, compete
from machine import Clock, machine, percentiles
from memory import checkpoint_bytes, gradient_bytes, optimizer_bytes, parameter_bytes, saved_bytes
from networks import NETWORKS, Task, build
from report import bars, table


def enter_all(task: Task, rank: int, device: str, compiled: bool) -> tuple[dict[str, Contestant], dict[str, str]]:
    """All contestants, each checked; and why the others stay away."""
    enter(copy.deepcopy(task), METHODS["full"], rank, device)  # what a process does once is nobody's start-up time
    here, away = {}, {}
    for name, method in (METHODS | COMPILED if compiled else METHODS).items():
        print(f"{name}: first step", file=sys.stderr)
        try:
            here[name] = enter(copy.deepcopy(task), method, rank, device)
        except ValueError as reason:
            away[name] = str(reason)
            print(f"{name} is left out: {reason}", file=sys.stderr)
            continue
        here[name].step(Clock(device))
        check_changes(task, here[name], rank)
    return here, away


def bytes_of(contestant: Contestant, device: str) -> dict[str, float | None]:
    """Megabytes of a contestant; of slices that alternate, those of the costlier direction."""
    saved, peaks = [], []
    for _ in range(2 if contestant.method.moves else 1):
        saved.append(saved_bytes(contestant))
        peaks.append(allocator_peak(contestant) if device == "cuda" else 0)
        if contestant.method.moves and contestant.handle is not None:
            contestant.handle.move()
    parts = {
        "saved": max(saved),
        "parameters": parameter_bytes(contestant),
        "gradients": gradient_bytes(contestant),
        "optimizer": optimizer_bytes(contestant),
    }
    told = {**parts, "sum": sum(parts.values()), "checkpoint": checkpoint_bytes(contestant)}
    peak = {"allocator_mb": round(max(peaks) / 1e6, 3) if device == "cuda" else None}
    return {**{f"{name}_mb": round(value / 1e6, 3) for name, value in told.items()}, **peak}


def allocator_peak(contestant: Contestant) -> int:
    """Peak of a step on a GPU, without what the other contestants hold between steps."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    own = parameter_bytes(contestant) + optimizer_bytes(contestant)
    others = torch.cuda.memory_allocated() - own
    contestant.step(Clock("cuda"))
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - others


def times_of(name: str, rounds: list[Round]) -> dict[str, object]:
    """Milliseconds and ratios of a contestant."""
    steps = [times[name]["step"] for times in rounds]
    told: dict[str, object] = {"step_ms": percentiles([1e3 * step for step in steps])}
    for other in ("floor", "lora"):
        told[f"time_vs_{other}"] = percentiles([times[name]["step"] / times[other]["step"] for times in rounds])
    alike = {"floor": "floor, compiled", "lora": "lora, compiled"} if name in COMPILED else {}
    for other, compiled in alike.items():
        ratios = [times[name]["step"] / times[compiled]["step"] for times in rounds]
        told[f"time_vs_compiled_{other}"] = percentiles(ratios)
    for part in PARTS:
        told[f"{part}_ms"] = percentiles([1e3 * times[name][part] for times in rounds])
    if "move" in rounds[0][name]:
        move = statistics.mean(times[name]["move"] for times in rounds)
        told["move_ms"] = round(1e3 * move, 3)
        told["move_share_at_interval_100"] = round(move / (100 * statistics.median(steps)), 6)
    return told


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run the whole comparison for one network and rank."""
    sizes = {"batch": arguments.batch, "tokens": arguments.tokens}
    device, rank = arguments.device, arguments.rank
    task = build(arguments.network, device=device, **sizes)
    check_against_full_training(task.to(device, torch.float32))
    task.to(device, getattr(torch, arguments.dtype))
    contestants, away = enter_all(task, rank, device, arguments.compile)
    kept = {name: bytes_of(contestant, device) for name, contestant in contestants.items()}
    rounds = list(compete(contestants, arguments.rounds, device))
    rows: dict[str, dict[str, object]] = {}
    for name, contestant in contestants.items():
        grown = None
        if arguments.resident and name in METHODS:
            print(f"{name}: resident set", file=sys.stderr)
            grown = round(resident.in_fresh_process(arguments.network, name, rank, **sizes) / 1e6, 1)
        rows[name] = {
            **times_of(name, rounds),
            **kept[name],
            "resident_mb": grown,
            "startup_s": round(contestant.startup, 3),
            "trained": sum(parameter.numel() for parameter in contestant.trained()),
            "sliced": None if contestant.handle is None else len(contestant.handle),
        }
        for other in ("floor", "lora"):
            rows[name][f"saved_vs_{other}"] = _ratio(kept[name]["saved_mb"], kept[other]["saved_mb"])
    question = {"network": arguments.network, "width": task.width, "rank": rank, "dtype": arguments.dtype}
    batch = {name: list(value.shape) for name, value in task.batch.items()}
    return {
        **question,
        "batch": batch,
        "rounds": arguments.rounds,
        "targets": len(task.targets()),
        "rows": rows,
        "left_out": away,
    }


def _ratio(value: float | None, other: float | None) -> float | None:
    return None if value is None or not other else round(value / other, 4)


def arguments_of_the_command() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="minilm")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, help="examples; by default what suits the device, see networks.py")
    parser.add_argument("--tokens", type=int, help="of each text, likewise")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of all weights; bfloat16 on a GPU by default")
    parser.add_argument("--compile", action="store_true", help="add contestants under torch.compile")
    parser.add_argument("--no-resident", dest="resident", action="store_false", help="start no process a method")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    arguments = parser.parse_args()
    if arguments.compile:
        refuse_without_compiler(arguments.device)
    arguments.dtype = arguments.dtype or ("bfloat16" if arguments.device == "cuda" else "float32")
    # Elsewhere there is no such measurement, and half precision is not asked of small processes.
    arguments.resident &= arguments.device == "cpu" and arguments.dtype == "float32" and resident.SUPPORTED
    return arguments


def main() -> None:
    arguments = arguments_of_the_command()
    told = machine(arguments.device)
    result = measure(arguments)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"machine": told, **result}, indent=1) + "\n")
    print(table(result), "", bars(result), sep="\n")


if __name__ == "__main__":
    main()
