"""How much does the resident set of a process grow when a method trains?  Linux, CPU.

python benchmarks/resident.py minilm "slice, column" --rank 8

Prints bytes: the peak within three steps, over what the process held when the plain network had been built.  Ask in a
fresh process for each method, as ``train_step.py`` does, for memory that was freed once is not always handed back.
The peak is Linux's VmHWM, set back before the steps; ``getrusage`` would tell the peak of the imports, or that of the
parent process.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from contestants import METHODS, enter
from machine import Clock
from networks import NETWORKS, build

STEPS = 3
SUPPORTED = Path("/proc/self/clear_refs").exists()


def in_fresh_process(network: str, method: str, rank: int, batch: int | None, tokens: int | None) -> int:
    """Bytes by which a new process grows, training ``method``."""
    sizes = {"--rank": rank, "--batch": batch, "--tokens": tokens}
    flags = [str(part) for flag, size in sizes.items() if size is not None for part in (flag, size)]
    done = subprocess.run(
        [sys.executable, __file__, network, method, *flags], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"Measuring the resident set of {method!r} failed:\n{done.stderr[-3000:]}")
    return int(done.stdout.splitlines()[-1])


def resident(field: str) -> int:
    """Bytes of a field of this process's memory: ``VmRSS`` now, ``VmHWM`` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(line.split()[1])  # told in kB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--tokens", type=int)
    arguments = parser.parse_args()
    task = build(arguments.network, batch=arguments.batch, tokens=arguments.tokens)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    contestant = enter(task, METHODS[arguments.method], arguments.rank, "cpu")
    for _ in range(STEPS - 1):
        contestant.step(Clock("cpu"))
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main()
