"""Growth of a process's resident set size (RSS) while a method trains. Linux, CPU.

The peak of three steps minus the RSS of the process with the plain network. Each method needs a fresh process, because
freed memory is not always returned to the system. The peak is Linux's VmHWM, reset before the steps; ``getrusage``
would report the peak of the imports, or of the parent process.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.harness.machine import Clock
from benchmarks.harness.methods import METHODS
from benchmarks.harness.networks import build
from benchmarks.harness.training import prepare

STEPS = 3
SUPPORTED = Path("/proc/self/clear_refs").exists()


def rss_growth(network: str, method: str, rank: int, batch: int | None, tokens: int | None) -> int:
    """Bytes by which a fresh process grows while it trains ``method``; sizes as in ``build``."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_own_growth, network, method, rank, batch, tokens).result()


def _own_growth(network: str, method: str, rank: int, batch: int | None, tokens: int | None) -> int:
    workload = build(network, batch=batch, tokens=tokens)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status_bytes("VmRSS")
    run = prepare(workload, METHODS[method], rank, "cpu")
    for _ in range(STEPS - 1):
        run.step(Clock("cpu"))
    return status_bytes("VmHWM") - before


def status_bytes(field: str) -> int:
    """A field of this process's status: ``VmRSS`` is the current RSS, ``VmHWM`` its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(line.split()[1])  # given in kB
