"""What does a training step cost: a frozen network, a moving slice, LoRA, masked gradients, full fine-tuning?

python benchmarks/train_step.py --network minilm --rank 8 --rounds 15 --out benchmarks/results/NAME.json

All methods train the same network (random weights, no dropout) on the same batch with AdamW, one after the other within
each round, so that a machine that slows down slows all of them.  The floor is a frozen network through which the
gradient flows to the bottom: what no method that trains something in every layer can beat.  Before anything is timed, a
slice of full width is checked against full training.

Reported per method: median step time and the median of its ratio to the floor in the same round, with the 16th and 84th
percentile; bytes that autograd saves for backward beyond the parameters; bytes of optimizer state; trained parameters.
"""

import argparse
import copy
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import peft
import torch
import transformers
from networks import NETWORKS, Task, build
from torch import Tensor, nn

from slicefine_pl.slicing import SliceHandle, slice_model
from slicefine_pl.slicing.activations import count_activations


@dataclass
class Contestant:
    """One method: its network, the loss, and what happens around a step."""

    net: nn.Module
    loss: Callable[[nn.Module], Tensor]
    optimizer: torch.optim.Optimizer | None
    mask: Callable[[], None] = lambda: None
    handle: SliceHandle | None = None

    def step(self) -> float:
        """One training step; returns the loss."""
        loss = self.loss(self.net)
        loss.backward()  # type: ignore[no-untyped-call]
        self.mask()
        if self.optimizer is not None:
            self.optimizer.step()
        self.net.zero_grad(set_to_none=True)
        return loss.item()


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW((parameter for parameter in net.parameters() if parameter.requires_grad), lr=1e-4)


def floor(task: Task, rank: int) -> Contestant:
    net = task.net.requires_grad_(False)
    head = net.get_submodule(task.head).requires_grad_(True)
    # A gradient that has to reach the first layer, as it has to wherever something in that layer is trained.
    net.get_submodule(task.bottom).register_forward_hook(_ask_for_gradient)
    return Contestant(net, task.loss, adamw(head))


def _ask_for_gradient(module: nn.Module, inputs: object, output: Tensor) -> None:
    output.requires_grad_(True)


def sliced(axis: str) -> Callable[[Task, int], Contestant]:
    def build(task: Task, rank: int) -> Contestant:
        handle = open_slices(task, rank, axis)
        return Contestant(task.net, task.loss, adamw(task.net), handle=handle)

    return build


def open_slices(task: Task, rank: int, axis: str) -> SliceHandle:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Left frozen")  # stems with three channels, depthwise convolutions
        return slice_model(task.net, rank=rank, axis=axis, also_train=f"^{task.head}")  # type: ignore[arg-type]


def lora(task: Task, rank: int) -> Contestant:
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=task.targets(), modules_to_save=[task.head])
    adapted = peft.get_peft_model(cast("transformers.PreTrainedModel", task.net), config)
    return Contestant(adapted, task.loss, adamw(adapted))


def masked(task: Task, rank: int) -> Contestant:
    """Full gradients of which all but the first columns are zeroed: the textbook way to train a slice."""
    net = task.net.requires_grad_(False)
    net.get_submodule(task.head).requires_grad_(True)
    weights = [net.get_submodule(name).get_parameter("weight").requires_grad_(True) for name in task.targets()]

    def mask() -> None:
        for weight in weights:
            assert weight.grad is not None
            weight.grad[:, rank:] = 0

    return Contestant(net, task.loss, adamw(net), mask=mask)


def full(task: Task, rank: int) -> Contestant:
    return Contestant(task.net, task.loss, adamw(task.net))


METHODS = {
    "floor": floor,
    "slice, column": sliced("column"),
    "slice, row": sliced("row"),
    "slice, alternate": sliced("alternate"),
    "lora": lora,
    "masked gradients": masked,
    "full": full,
}


def check_against_full_training(task: Task) -> None:
    """A slice of full width must train like the dense weights: a fast wrong answer is not a result."""
    ours, theirs = copy.deepcopy(task), copy.deepcopy(task)
    name = task.targets()[0]
    rank = task.net.get_submodule(name).get_parameter("weight").shape[1]
    handle = slice_model(ours.net, rank=rank, targets=f"^{name}$", also_train=f"^{task.head}")
    theirs.net.requires_grad_(False)
    theirs.net.get_submodule(task.head).requires_grad_(True)
    theirs.net.get_submodule(name).get_parameter("weight").requires_grad_(True)
    for each in (ours, theirs):
        contestant = Contestant(each.net, each.loss, adamw(each.net))
        for _ in range(3):
            contestant.step()
    handle.close()
    for parameter, dense in zip(ours.net.parameters(), theirs.net.parameters(), strict=True):
        torch.testing.assert_close(parameter, dense, rtol=1e-4, atol=2e-5)


def saved_bytes(contestant: Contestant) -> int:
    """Bytes that autograd keeps between forward and backward, each storage once, without the parameters."""
    with count_activations() as activations:
        loss = contestant.loss(contestant.net)
    loss.backward()  # type: ignore[no-untyped-call]
    contestant.net.zero_grad(set_to_none=True)
    return activations.bytes


def optimizer_bytes(contestant: Contestant) -> int:
    assert contestant.optimizer is not None
    states = contestant.optimizer.state.values()
    return sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))


def timed(action: Callable[[], object], device: str) -> float:
    """Seconds that ``action`` takes, until the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compete(contestants: dict[str, Contestant], rounds: int, device: str) -> Iterator[dict[str, float]]:
    """Step times of every round, all methods in turn; the first three rounds warm up."""
    for round_number in range(rounds + 3):
        times = {name: timed(one.step, device) for name, one in contestants.items()}
        if round_number >= 3:
            print(f"round {round_number - 2}/{rounds}: floor {1e3 * times['floor']:.0f} ms", file=sys.stderr)
            yield times


def move_seconds(contestant: Contestant, device: str, repeats: int = 20) -> float:
    """Median time of moving all slices and forgetting their optimizer state."""
    assert contestant.handle is not None
    handle, optimizer = contestant.handle, contestant.optimizer
    assert optimizer is not None

    def move() -> None:
        for live in handle.move():
            optimizer.state.pop(live.parameter, None)

    return statistics.median(timed(move, device) for _ in range(repeats))


def percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    last = len(ordered) - 1
    places = {"p16": 0.16, "median": 0.5, "p84": 0.84}
    return {name: round(ordered[round(place * last)], 4) for name, place in places.items()}


def measure(network: str, rank: int, rounds: int, device: str) -> dict[str, object]:
    """Run the whole comparison for one network."""
    task = build(network)
    task.net.to(device)
    check_against_full_training(task)
    contestants = {name: method(copy.deepcopy(task), rank) for name, method in METHODS.items()}
    saved = {name: saved_bytes(contestant) for name, contestant in contestants.items()}
    times = list(compete(contestants, rounds, device))
    rows = {}
    for name, contestant in contestants.items():
        rows[name] = {
            "step_ms": percentiles([1e3 * row[name] for row in times]),
            "time_vs_floor": percentiles([row[name] / row["floor"] for row in times]),
            "time_vs_lora": percentiles([row[name] / row["lora"] for row in times]),
            "saved_mb": round(saved[name] / 1e6, 2),
            "saved_vs_floor": round(saved[name] / saved["floor"], 4),
            "saved_vs_lora": round(saved[name] / saved["lora"], 4),
            "optimizer_mb": round(optimizer_bytes(contestant) / 1e6, 3),
            "trained": sum(p.numel() for p in contestant.net.parameters() if p.requires_grad),
        }
    move = move_seconds(contestants["slice, column"], device)
    step = statistics.median(row["slice, column"] for row in times)
    return {"rows": rows, "move_ms": round(1e3 * move, 3), "move_share_at_interval_50": round(move / (50 * step), 6)}


def machine(device: str) -> dict[str, object]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "commit": commit.stdout.strip(),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def table(result: dict[str, object]) -> str:
    """The result as a Markdown table."""
    lines = [
        "| method | step ms | time / floor | time / LoRA | saved MB | saved / floor | saved / LoRA"
        " | optimizer MB | trained |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["rows"].items():  # type: ignore[attr-defined]
        ratio, against_lora = row["time_vs_floor"], row["time_vs_lora"]
        lines.append(
            f"| {name} | {row['step_ms']['median']:.0f} | {ratio['median']:.2f} ({ratio['p16']:.2f}-{ratio['p84']:.2f})"
            f" | {against_lora['median']:.2f} | {row['saved_mb']:.1f} | {row['saved_vs_floor']:.3f}"
            f" | {row['saved_vs_lora']:.3f} | {row['optimizer_mb']:.2f} | {row['trained']:,} |"
        )
    move = f"A move of all column slices takes {result['move_ms']} ms"
    share = f"{100 * float(str(result['move_share_at_interval_50'])):.3f} % of the time at interval 50"
    return "\n".join([*lines, "", f"{move}: {share}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="minilm")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    arguments = parser.parse_args()
    result = measure(arguments.network, arguments.rank, arguments.rounds, arguments.device)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"machine": machine(arguments.device), **result}, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
