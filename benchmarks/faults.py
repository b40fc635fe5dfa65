"""How long until every process has gone, when one of them fails?

    python benchmarks/faults.py

Runs the text recipe's smoke settings on two processes, once for each fault and way of starting, and counts the seconds
from the fault until the last process has ended.  A run that hangs is ended after ``LIMIT`` seconds and told as such.
As root, the full disk is a real one (a tmpfs of one megabyte); otherwise that line is left out.
"""

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from slicefine_pl.cli.recipe.run import run
from slicefine_pl.data import TextDataModule
from slicefine_pl.modules import TextClassifier

ROOT = Path(__file__).parents[1]
SETTINGS = ["fit", "--config", "recipes/configs/text_smoke.yaml", "--trainer.max_epochs", "200"]
LIMIT = 300
CHILD = "SLICEFINE_FAULTS_CHILD"
FAULTS = {
    "exception on rank 1": None,
    "exception on rank 0": None,
    "kill -9 of rank 1": (signal.SIGKILL, 1),
    "kill -9 of rank 0": (signal.SIGKILL, 0),
    "SIGTERM to rank 1": (signal.SIGTERM, 1),
    "SIGTERM to the launcher": (signal.SIGTERM, "launcher"),
    "disk full on rank 0": None,
}


class Fault(Callback):
    """Says when a process trains, and strikes."""

    def __init__(self, fault: str, notes: str) -> None:
        self.fault = fault
        self.notes = Path(notes)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        rank = trainer.global_rank
        if trainer.global_step == 4:
            (self.notes / f"rank{rank}").write_text(str(os.getpid()))
        if trainer.global_step == 12 and self.fault == f"exception on rank {rank}":
            (self.notes / "struck").touch()
            raise RuntimeError("a fault that was put here")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            (self.notes / "saving").touch()


def measure(fault: str, launcher: str, strategy: str) -> dict[str, object]:
    """Start, let the fault strike, and wait for all to end."""
    with tempfile.TemporaryDirectory() as folder:
        notes, runs = Path(folder, "notes"), Path(folder, "runs")
        notes.mkdir()
        runs.mkdir()
        if fault.startswith("disk"):
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(runs)], check=True)
        starts = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if launcher == "torchrun" else []
        own = [__file__, *SETTINGS, "--trainer.strategy", strategy, "--trainer.devices", "2"]
        own += ["--trainer.enable_progress_bar", "false", "--trainer.logger.init_args.save_dir", str(runs)]
        own += ["--trainer.callbacks+", "__main__.Fault", f"--trainer.callbacks.fault={fault}"]
        own += [f"--trainer.callbacks.notes={notes}"]
        with Path(folder, "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *starts, *own], cwd=ROOT, stdout=log, stderr=log, env=os.environ | {CHILD: "1"}
            )
        try:
            began = strike(fault, process, notes, runs)
            code = process.wait(LIMIT)
            left = [int(path.read_text()) for path in notes.glob("rank*")]
            while any(Path(f"/proc/{pid}").exists() for pid in left) and time.time() - began < LIMIT:
                time.sleep(0.05)
            seconds: float | None = round(time.time() - began, 1)
        except (subprocess.TimeoutExpired, TimeoutError):
            seconds, code = None, -1
            print(Path(folder, "log").read_text()[-3000:], file=sys.stderr)
        finally:
            for path in notes.glob("rank*"):
                if Path(f"/proc/{path.read_text()}").exists():
                    os.kill(int(path.read_text()), signal.SIGKILL)
            process.kill()
            saved = sorted(path.name for path in runs.rglob("*.ckpt"))
            if fault.startswith("disk"):
                subprocess.run(["umount", str(runs)], check=True)
    return {
        "fault": fault,
        "launcher": launcher,
        "strategy": strategy,
        "seconds": seconds,
        "exit": code,
        "saved": saved,
    }


def strike(fault: str, process: subprocess.Popen[bytes], notes: Path, runs: Path) -> float:
    """Wait until both ranks train, do what has to be done from outside, and return when it struck."""
    waited = [notes / "rank0", notes / "rank1"]
    if fault.startswith("exception"):
        waited.append(notes / "struck")
    until(lambda: all(path.exists() and (path.name == "struck" or path.read_text()) for path in waited), process)
    how = FAULTS[fault]
    if how is not None:
        number, whom = how
        os.kill(process.pid if whom == "launcher" else int((notes / f"rank{whom}").read_text()), number)
    if fault.startswith("disk"):
        fill(runs)
        (notes / "saving").unlink(missing_ok=True)
        until((notes / "saving").exists, process)
    return time.time()


def fill(folder: Path) -> None:
    """Leave no byte free."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait for what must come before the process ends.

    Raises:
        TimeoutError: It did not come in ``LIMIT`` seconds, or the process ended.
    """
    for _ in range(LIMIT * 20):
        if condition():
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise TimeoutError("the run did not come that far")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", nargs="*", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--launchers", nargs="*", choices=["torchrun", "Lightning"], default=["torchrun", "Lightning"])
    parser.add_argument("--strategies", nargs="*", choices=["ddp", "fsdp2"], default=["ddp"])
    parser.add_argument("--out", type=Path, help="where to write the results, one JSON object a line")
    arguments = parser.parse_args()
    for strategy in arguments.strategies:
        for launcher in arguments.launchers:
            for fault in arguments.faults:
                if fault.startswith("disk") and os.geteuid() != 0:
                    continue
                result = measure(fault, launcher, strategy)
                print(json.dumps(result), flush=True)
                if arguments.out is not None:
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    if CHILD in os.environ:  # one process of a run; not a flag, as Lightning starts others with the same arguments
        run(TextClassifier, TextDataModule, ROOT / "recipes" / "configs" / "text.yaml")
    else:
        main()
