"""The machine that a benchmark runs on: its description, a clock for the parts of a step, and percentiles."""

import gc
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
OUTPUTS = ("benchmarks/results", "docs")  # benchmarks write here, so changes here do not make a commit dirty


def machine(device: str) -> dict[str, object]:
    """Describe machine, versions, commit and command; stored with every result.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
    """
    threads = torch.get_num_threads()
    module = sys.modules["__main__"].__spec__
    script = [sys.argv[0]] if module is None else ["-m", module.name.removesuffix(".__main__")]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", *script, *sys.argv[1:]]),
        "commit": commit(),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {threads} thread{'s' * (threads > 1)}",
        "processor": processor(),
        "load": round(os.getloadavg()[0], 2),  # of the last minute; near the number of threads on a quiet machine
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device == "cuda" else None,
        "transformers": version("transformers"),
        "peft": version("peft"),
    }


def commit() -> str:
    """Short hash of the current commit, with ``-dirty`` if source files differ from it.

    Without a repository or git, as on a machine to which only the files were copied, the value of
    ``$BENCHMARK_COMMIT``. Changes in ``OUTPUTS`` are ignored.
    """
    changed = _git("status", "--porcelain", "--", ".", *(f":!{folder}" for folder in OUTPUTS))
    return _git("describe", "--always") + ("-dirty" if changed else "") or os.environ.get("BENCHMARK_COMMIT", "")


def _git(*arguments: str) -> str:
    if shutil.which("git") is None:
        return ""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def processor() -> str:
    """Name of the processor as Linux reports it; elsewhere its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class Clock:
    """Time the parts of a step; on a GPU with events, which do not make it wait.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._marks: list[float] = []
        self._events: list[torch.cuda.Event] = []
        if self._cuda:
            torch.cuda.synchronize()
        self.mark()

    def mark(self) -> None:
        """End one part and begin the next."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._events.append(event)
        else:
            self._marks.append(time.perf_counter())

    def stop(self) -> list[float]:
        """Wait for the device; return the seconds of each part, then of the whole."""
        self.mark()
        if self._cuda:
            torch.cuda.synchronize()
            parts = [1e-3 * first.elapsed_time(second) for first, second in pairwise(self._events)]
        else:
            parts = [second - first for first, second in pairwise(self._marks)]
        return [*parts, sum(parts)]


def free_memory() -> None:
    """Return GPU memory that nothing refers to any more; does nothing in a process that has not used a GPU."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        gc.collect()
        torch.cuda.empty_cache()


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The median, and the 16th and 84th percentile."""
    ordered = sorted(values)
    last = len(ordered) - 1
    places = {"p16": 0.16, "median": 0.5, "p84": 0.84}
    return {name: round(ordered[round(place * last)], 4) for name, place in places.items()}
