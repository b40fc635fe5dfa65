"""Growth of a process's resident set size (RSS) while a method trains.  Linux, CPU.

python -m benchmarks.harness.rss minilm "slice, column" --rank 8

Prints the bytes by which the peak of three steps exceeds the RSS of the process with the plain network.  Each method
needs a fresh process, because freed memory is not always returned to the system.  The peak is Linux's VmHWM, reset
before the steps; ``getrusage`` would report the peak of the imports, or of the parent process.
"""

import subprocess
import sys
from pathlib import Path

from benchmarks.harness.machine import ROOT, Clock
from benchmarks.harness.methods import METHODS
from benchmarks.harness.networks import NETWORKS, build
from benchmarks.harness.results import argument_parser
from benchmarks.harness.training import prepare

STEPS = 3
SUPPORTED = Path("/proc/self/clear_refs").exists()


def rss_growth(network: str, method: str, rank: int, batch: int | None, tokens: int | None) -> int:
    """Bytes by which a fresh process grows while it trains ``method``."""
    sizes = {"--rank": rank, "--batch": batch, "--tokens": tokens}
    flags = [str(part) for flag, size in sizes.items() if size is not None for part in (flag, size)]
    command = [sys.executable, "-m", "benchmarks.harness.rss", network, method, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Measuring the RSS of {method!r} failed:\n{done.stderr[-3000:]}")
    return int(done.stdout.splitlines()[-1])


def status_bytes(field: str) -> int:
    """A field of this process's status: ``VmRSS`` is the current RSS, ``VmHWM`` its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(line.split()[1])  # given in kB


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--tokens", type=int)
    arguments = parser.parse_args()
    workload = build(arguments.network, batch=arguments.batch, tokens=arguments.tokens)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status_bytes("VmRSS")
    run = prepare(workload, METHODS[arguments.method], arguments.rank, "cpu")
    for _ in range(STEPS - 1):
        run.step(Clock("cpu"))
    print(status_bytes("VmHWM") - before)


if __name__ == "__main__":
    main()
