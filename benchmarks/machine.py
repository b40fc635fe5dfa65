"""The machine that a benchmark runs on: what it is, how its time is taken, and how its numbers are told."""

import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import peft
import torch
import transformers


def machine(device: str) -> dict[str, object]:
    """What a result has to be read with."""
    threads = torch.get_num_threads()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {threads} thread{'s' * (threads > 1)}",
        "processor": processor(),
        "load": round(os.getloadavg()[0], 2),  # of the last minute: near the number of threads on a quiet machine
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device == "cuda" else None,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def commit() -> str:
    """The commit that runs, and whether files differ from it; nothing outside a repository."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def processor() -> str:
    """The processor's name, as Linux tells it; elsewhere its architecture."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class Clock:
    """Takes the time of the parts of a step without holding a GPU up between them.

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
        """End a part and begin the next."""
        self._marks.append(time.perf_counter())
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._events.append(event)

    def stop(self) -> list[float]:
        """Seconds of all parts, and last of the whole, until the device is done."""
        self.mark()
        if self._cuda:
            torch.cuda.synchronize()
        whole = time.perf_counter() - self._marks[0]
        if self._cuda:
            pairs = zip(self._events, self._events[1:], strict=False)
            return [*(1e-3 * first.elapsed_time(second) for first, second in pairs), whole]
        return [*(second - first for first, second in zip(self._marks, self._marks[1:], strict=False)), whole]


def percentiles(values: list[float]) -> dict[str, float]:
    """The median, and the 16th and 84th percentile."""
    ordered = sorted(values)
    last = len(ordered) - 1
    places = {"p16": 0.16, "median": 0.5, "p84": 0.84}
    return {name: round(ordered[round(place * last)], 4) for name, place in places.items()}
