"""Measure and draw the cost of a step for all networks and ranks, and its growth.

OMP_NUM_THREADS=1 python -m benchmarks.step_cost.run_all

About four hours on a quiet machine. A result that exists is not measured again, so a stopped run continues; delete
the file to repeat a measurement. ``--rounds 1 --batch 1 --results DIR --pictures DIR`` tries everything quickly.
"""

import subprocess
import sys
from pathlib import Path

from benchmarks.harness.machine import ROOT
from benchmarks.harness.results import argument_parser, read_result
from benchmarks.step_cost.pictures import draw_growth, draw_network
from benchmarks.step_cost.report import table, thresholds

RANKS = {
    **dict.fromkeys(("minilm", "large", "vit", "llama", "mvit"), (8, 64, 1)),
    **dict.fromkeys(("base", "resnet50", "x3d"), (8,)),
}
COMPILED = ("minilm", "large", "vit")  # at R = 8; the other networks take too long to compile six times


def measure(module: str, out: Path, flags: list[str]) -> None:
    """Run one benchmark in a process of its own, unless its result exists."""
    if not out.exists():
        command = [sys.executable, "-m", f"benchmarks.step_cost.{module}", "--out", str(out), *flags]
        subprocess.run(command, cwd=ROOT, check=True)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, help="examples per batch; the default depends on the network")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs" / "images")
    arguments = parser.parse_args()
    rounds = ["--rounds", str(arguments.rounds)]
    batch = [] if arguments.batch is None else ["--batch", str(arguments.batch)]
    results = {
        network: {rank: arguments.results.resolve() / f"cost_{network}_r{rank}.json" for rank in ranks}
        for network, ranks in RANKS.items()
    }
    for network, files in results.items():
        for rank, out in files.items():
            compiled = ["--compile"] if rank == 8 and network in COMPILED else []
            measure("run", out, ["--network", network, "--rank", str(rank), *rounds, *batch, *compiled])
    growth = arguments.results.resolve() / "growth.json"
    measure("growth", growth, rounds)
    draw_growth(read_result(growth), arguments.pictures / "growth.png")
    for network, files in results.items():
        measured = [read_result(out) for out in files.values()]
        draw_network(measured, arguments.pictures / f"cost_{network}.png")
        for result in measured:
            print(table(result), "", thresholds(result), "", sep="\n")


if __name__ == "__main__":
    main()
