"""How many bytes does a training step send: slices, LoRA, full training; copies of the network (DDP), shares (FSDP2)?

    unshare --net bash -c "ip link set lo up; python benchmarks/communication.py --out benchmarks/results/NAME.json"

Two processes (gloo) train the network of ``train_step.py`` in real Lightning runs.  Counted is what the loopback device
sent between the sixth and the sixteenth step, so it must carry nothing else: as root, in a network of its own, as
above.  Between these steps slices move twice.  Beside it stand, by arithmetic, the bytes of a process's gradients.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from machine import commit
from methods import lora
from networks import NETWORKS, build
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from slicefine_pl import FullyShardedStrategy, SliceFineCallback

FIRST, LAST, PROCESSES = 6, 16, 2
METHODS = ("slice, column", "slice, row", "lora", "full")


class Step(LightningModule):
    """The network on its one batch."""

    def __init__(self, network: str, method: str, rank: int) -> None:
        super().__init__()
        task = build(network)
        self.head = task.head
        self.loss = task.loss
        self.net = task.net
        if method == "lora":
            lora(task.net, task.new_head, task.targets(), rank)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self.net)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW((parameter for parameter in self.parameters() if parameter.requires_grad), lr=1e-4)


class Count(Callback):
    """What went over the wire, and the bytes of this process's gradients."""

    def __init__(self) -> None:
        self.sent = 0
        self.gradients = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        trainer.strategy.barrier()
        if batch_idx == FIRST:
            self.sent = -sent()
        if batch_idx == LAST:
            self.sent += sent()
        trainer.strategy.barrier()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        grown = (parameter for parameter in pl_module.parameters() if parameter.grad is not None)
        self.gradients = sum(parameter.numel() * parameter.element_size() for parameter in grown)


def sent() -> int:
    """Bytes that the loopback device has sent so far."""
    [line] = [line for line in Path("/proc/self/net/dev").read_text().splitlines() if line.strip().startswith("lo:")]
    return int(line.split()[9])


def child(network: str, method: str, strategy: str, rank: int) -> None:
    """One of the processes; the first prints the result."""
    module, count = Step(network, method, rank), Count()
    axis: Any = method.removeprefix("slice, ")
    sliced = SliceFineCallback(rank=rank, axis=axis, interval=5, also_train=module.head) if "slice" in method else None
    data = TensorDataset(torch.zeros(PROCESSES * (LAST + 1)))
    loader = DataLoader(data, sampler=DistributedSampler(data, PROCESSES, int(os.environ["RANK"])))
    trainer = Trainer(
        callbacks=[*filter(None, [sliced]), count],
        strategy=FullyShardedStrategy() if strategy == "fsdp2" else strategy,
        devices=PROCESSES,
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    if trainer.is_global_zero:
        steps = LAST - FIRST
        measured = count.sent / steps / PROCESSES
        print(json.dumps({"method": method, "strategy": strategy, "sent": measured, "gradients": count.gradients}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="minilm")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        method, strategy = arguments.child
        child(arguments.network, method, strategy, arguments.rank)
        return
    rows = []
    for strategy in ("ddp", "fsdp2"):
        for method in METHODS:
            starts = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(PROCESSES), __file__]
            own = ["--network", arguments.network, "--rank", str(arguments.rank), "--child", method, strategy]
            done = subprocess.run([*starts, *own], capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            [row] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"method"')]
            rows.append(row)
            told = f"{row['sent'] / 1e6:8.2f} MB a step and process, gradients {row['gradients'] / 1e6:8.2f} MB"
            print(f"{strategy:6} {method:14} {told}", flush=True)
    result = {
        "network": arguments.network,
        "rank": arguments.rank,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "rows": rows,
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
