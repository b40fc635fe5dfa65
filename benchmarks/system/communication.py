"""How many bytes does a training step send? Slices, LoRA and full training; under DDP and FSDP2.

unshare --net bash -c "ip link set lo up; python -m benchmarks.system.communication --out FILE"

Two processes (gloo) train a network in real Lightning runs. Counted are the bytes that the loopback device sends
between the sixth and the sixteenth step; slices move twice in between. The device must carry nothing else, so run as
root in a network namespace of its own, as above. The bytes of a process's gradients are reported for comparison.
"""

import json
import os
import subprocess
import sys
from argparse import SUPPRESS
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from benchmarks.harness.lightning import QUIET, WorkloadModule
from benchmarks.harness.machine import ROOT, machine
from benchmarks.harness.methods import lora
from benchmarks.harness.networks import NETWORKS, build
from benchmarks.harness.results import Row, argument_parser, result_path, write_result
from slicefine_pl import FullyShardedStrategy, SliceFineCallback

FIRST, LAST, PROCESSES = 6, 16, 2
METHODS = ("slice, column", "slice, row", "lora", "full")
STRATEGIES = ("ddp", "fsdp2")


class Count(Callback):
    """Count the bytes sent between two steps, and the bytes of this process's gradients."""

    def __init__(self) -> None:
        self.sent = 0
        self.gradients = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        trainer.strategy.barrier()
        if batch_idx == FIRST:
            self.sent = -sent_bytes()
        if batch_idx == LAST:
            self.sent += sent_bytes()
        trainer.strategy.barrier()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        with_gradient = (parameter for parameter in pl_module.parameters() if parameter.grad is not None)
        self.gradients = sum(parameter.numel() * parameter.element_size() for parameter in with_gradient)


def sent_bytes() -> int:
    """Bytes that the loopback device has sent so far."""
    [line] = [line for line in Path("/proc/self/net/dev").read_text().splitlines() if line.strip().startswith("lo:")]
    return int(line.split()[9])


def train(network: str, method: str, strategy: str, rank: int) -> None:
    """Train in one of the processes; the first prints the result as JSON."""
    workload, count = build(network), Count()
    callbacks: list[Callback] = [count]
    if method.startswith("slice"):
        axis: Any = method.removeprefix("slice, ")
        callbacks.insert(0, SliceFineCallback(rank=rank, axis=axis, interval=5, also_train=workload.head))
    if method == "lora":
        lora(workload.net, workload.new_head, workload.targets(), rank)
    data = TensorDataset(torch.zeros(PROCESSES * (LAST + 1)))
    loader = DataLoader(data, sampler=DistributedSampler(data, PROCESSES, int(os.environ["RANK"])))
    trainer = Trainer(
        **QUIET,
        max_epochs=1,
        callbacks=callbacks,
        devices=PROCESSES,
        strategy=FullyShardedStrategy() if strategy == "fsdp2" else strategy,
    )
    trainer.fit(WorkloadModule(workload), loader)
    if trainer.is_global_zero:
        sent = count.sent / (LAST - FIRST) / PROCESSES
        print(json.dumps({"method": method, "strategy": strategy, "sent": sent, "gradients": count.gradients}))


def measure(network: str, method: str, strategy: str, rank: int) -> Row:
    """Bytes per step and process that two new processes send."""
    launch = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(PROCESSES),
        "-m",
        "benchmarks.system.communication",
    ]
    flags = ["--network", network, "--rank", str(rank), "--process", method, strategy]
    done = subprocess.run([sys.executable, *launch, *flags], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Training {network} with {method} under {strategy} failed:\n{done.stderr[-3000:]}")
    [row] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"method"')]
    return dict(row)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="minilm")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--out", type=result_path, help="JSON file of the result")
    parser.add_argument("--process", nargs=2, help=SUPPRESS)
    arguments = parser.parse_args()
    if arguments.process:
        method, strategy = arguments.process
        train(arguments.network, method, strategy, arguments.rank)
        return
    described, rows = machine("cpu"), []
    for strategy in arguments.strategies:
        for method in arguments.methods:
            row = measure(arguments.network, method, strategy, arguments.rank)
            sizes = f"{row['sent'] / 1e6:8.2f} MB per step and process, gradients {row['gradients'] / 1e6:8.2f} MB"
            print(f"{strategy:6} {method:14} {sizes}", flush=True)
            rows.append(row)
    result = {"machine": described, "network": arguments.network, "rank": arguments.rank, "rows": rows}
    write_result(arguments.out, result)


if __name__ == "__main__":
    main()
