"""How long until every process has ended after one of them fails?

python -m benchmarks.system.faults

Runs the smoke settings of the text recipe on two processes, once for each fault and launcher, and measures the seconds
from the fault until the last process has ended. A run that hangs is ended after ``LIMIT`` seconds and reported without
a time. For root, the full disk is real, a tmpfs of one megabyte; for other users that fault is skipped.
"""

import errno
import itertools
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

from benchmarks.harness.machine import ROOT
from benchmarks.harness.results import Row, argument_parser
from slicefine_pl.cli.recipe.run import run
from slicefine_pl.data import TextDataModule
from slicefine_pl.modules import TextClassifier

MODULE = "benchmarks.system.faults"
SETTINGS = ["fit", "--config", "recipes/configs/text_smoke.yaml", "--trainer.max_epochs", "200"]
LIMIT = 300  # seconds
CHILD = "SLICEFINE_FAULTS_CHILD"
FAULTS: dict[str, tuple[signal.Signals, int | str] | None] = {  # signal and its target, a rank or the launcher
    "exception on rank 1": None,
    "exception on rank 0": None,
    "kill -9 of rank 1": (signal.SIGKILL, 1),
    "kill -9 of rank 0": (signal.SIGKILL, 0),
    "SIGTERM to rank 1": (signal.SIGTERM, 1),
    "SIGTERM to the launcher": (signal.SIGTERM, "launcher"),
    "disk full on rank 0": None,
}


class Fault(Callback):
    """Record that a process trains, and raise the exception if it is due on this process."""

    def __init__(self, fault: str, notes: str) -> None:
        self.fault = fault
        self.notes = Path(notes)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        rank = trainer.global_rank
        if trainer.global_step == 4:
            (self.notes / f"rank{rank}").write_text(str(os.getpid()))
        if trainer.global_step == 12 and self.fault == f"exception on rank {rank}":
            (self.notes / "struck").touch()
            raise RuntimeError("exception of the benchmark")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            (self.notes / "saving").touch()


def measure(fault: str, launcher: str, strategy: str) -> Row:
    """Start a run, let the fault happen, and wait until all processes have ended."""
    with tempfile.TemporaryDirectory() as folder:
        notes, runs = Path(folder, "notes"), Path(folder, "runs")
        notes.mkdir()
        runs.mkdir()
        full_disk = fault.startswith("disk")
        if full_disk:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(runs)], check=True)
        with Path(folder, "log").open("w") as log:
            process = subprocess.Popen(
                command(fault, launcher, strategy, notes, runs),
                cwd=ROOT, stdout=log, stderr=log, env=os.environ | {CHILD: "1"},
            )  # fmt: skip
        seconds: float | None = None
        code = -1
        try:
            began = strike(fault, process, notes, runs)
            code = process.wait(LIMIT)
            while any(map(alive, notes.glob("rank*"))) and time.time() - began < LIMIT:
                time.sleep(0.05)
            seconds = round(time.time() - began, 1)
        except (subprocess.TimeoutExpired, TimeoutError):
            print(Path(folder, "log").read_text()[-3000:], file=sys.stderr)
        finally:
            for note in filter(alive, notes.glob("rank*")):
                os.kill(int(note.read_text()), signal.SIGKILL)
            process.kill()
            saved = sorted(path.name for path in runs.rglob("*.ckpt"))
            if full_disk:
                subprocess.run(["umount", str(runs)], check=True)
    result = {"fault": fault, "launcher": launcher, "strategy": strategy}
    return {**result, "seconds": seconds, "exit": code, "saved": saved}


def command(fault: str, launcher: str, strategy: str, notes: Path, runs: Path) -> list[str]:
    """The command that starts a run on two processes."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if launcher == "torchrun" else []
    flags = ["--trainer.strategy", strategy, "--trainer.devices", "2", "--trainer.enable_progress_bar", "false"]
    flags += ["--trainer.logger.init_args.save_dir", str(runs)]
    flags += ["--trainer.callbacks+", f"{MODULE}.Fault", f"--trainer.callbacks.fault={fault}"]
    flags += [f"--trainer.callbacks.notes={notes}"]
    return [sys.executable, *torchrun, "-m", MODULE, *SETTINGS, *flags]


def alive(note: Path) -> bool:
    """Whether the process whose id the note contains still exists."""
    pid = note.read_text()
    return pid != "" and Path(f"/proc/{pid}").exists()


def strike(fault: str, process: subprocess.Popen[bytes], notes: Path, runs: Path) -> float:
    """Wait until both ranks train, cause the fault, and return its time."""
    waited = [notes / "rank0", notes / "rank1"]
    if fault.startswith("exception"):
        waited.append(notes / "struck")
    until(lambda: all(path.exists() and (path.name == "struck" or path.read_text()) for path in waited), process)
    if (sent := FAULTS[fault]) is not None:
        number, target = sent
        os.kill(process.pid if target == "launcher" else int((notes / f"rank{target}").read_text()), number)
    if fault.startswith("disk"):
        fill(runs)
        (notes / "saving").unlink(missing_ok=True)
        until((notes / "saving").exists, process)
    return time.time()


def fill(folder: Path) -> None:
    """Fill the disk of a folder completely."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: It did not hold within ``LIMIT`` seconds, or the process ended.
    """
    for _ in range(LIMIT * 20):
        if condition():
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise TimeoutError(f"The run did not reach the fault within {LIMIT} seconds.")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--faults", nargs="*", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--launchers", nargs="*", choices=["torchrun", "Lightning"], default=["torchrun", "Lightning"])
    parser.add_argument("--strategies", nargs="*", choices=["ddp", "fsdp2"], default=["ddp"])
    arguments = parser.parse_args()
    for strategy, launcher, fault in itertools.product(arguments.strategies, arguments.launchers, arguments.faults):
        if os.geteuid() == 0 or not fault.startswith("disk"):
            print(json.dumps(measure(fault, launcher, strategy)), flush=True)


if __name__ == "__main__":
    if CHILD in os.environ:  # a process of a run; not a flag, because Lightning starts others with the same arguments
        run(TextClassifier, TextDataModule, ROOT / "recipes" / "configs" / "text.yaml")
    else:
        main()
