"""How does the cost of a training step grow with rank, width, depth and tokens? Column slices, LoRA, frozen baseline.

python -m benchmarks.step_cost.growth --rounds 9 --out benchmarks/results/growth.json --picture docs/images/growth.png

BERTs of many sizes: one of the four properties changes, the others have a base value. All methods and values of one
property are measured in turns in one run. The result is an exponent: the slope of a straight line through the
logarithms of step time (median) or saved bytes against those of the property. With exponent 0 the cost does not grow;
with exponent 1 it doubles with the property.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.machine import machine, percentiles
from benchmarks.harness.memory import saved_bytes
from benchmarks.harness.methods import METHODS
from benchmarks.harness.networks import bert
from benchmarks.harness.results import Row, argument_parser, markdown_table, result_path, write_result
from benchmarks.harness.rounds import interleaved
from benchmarks.harness.training import TrainingRun, prepare, timed_step
from benchmarks.step_cost.pictures import draw_growth
from benchmarks.step_cost.report import BASELINE, COLUMN, LORA

COMPARED = (BASELINE, COLUMN, LORA)
HEAD_WIDTH = 32  # width of an attention head; every width below is a multiple
BASES = {
    "cpu": {"rank": 8, "width": 256, "depth": 4, "tokens": 128, "batch": 4},
    "cuda": {"rank": 8, "width": 1024, "depth": 8, "tokens": 256, "batch": 32},
}
VALUES = {
    "cpu": {
        "rank": (1, 2, 4, 8, 16, 32, 64, 128),
        "width": (128, 256, 512, 1024),
        "depth": (2, 4, 8, 16),
        "tokens": (64, 128, 256, 512),
    },
    "cuda": {
        "rank": (1, 2, 4, 8, 16, 32, 64, 128, 256),
        "width": (512, 1024, 2048, 4096),
        "depth": (4, 8, 16, 32),
        "tokens": (128, 256, 512, 1024),
    },
}


def prepare_size(size: dict[str, int], method: str, device: str) -> TrainingRun:
    """A run of one method on a BERT of the given size."""
    torch.manual_seed(0)
    workload = bert(size["width"], size["depth"], size["width"] // HEAD_WIDTH, size["batch"], size["tokens"])
    workload.net.train()
    return prepare(workload.to(device, torch.float32), METHODS[method], size["rank"], device)


def measure(name: str, values: tuple[int, ...], base: dict[str, int], rounds: int, device: str) -> Row:
    """Change one property: time and saved bytes of each method at each value, and their exponents."""
    cases = {f"{method} {value}": (method, value) for method, value in itertools.product(COMPARED, values)}
    runs = {case: prepare_size({**base, name: value}, method, device) for case, (method, value) in cases.items()}
    saved = {case: saved_bytes(run) / 1e6 for case, run in runs.items()}
    times = list(interleaved(list(runs), lambda case, _: timed_step(runs[case], device), rounds))
    result: Row = {"values": list(values)}
    for method in COMPARED:
        own = [f"{method} {value}" for value in values]
        steps = [percentiles([1e3 * row[case]["step"] for row in times]) for case in own]
        megabytes = [round(saved[case], 3) for case in own]
        result[method] = {
            "step_ms": steps,
            "saved_mb": megabytes,
            "time_exponent": exponent(values, [step["median"] for step in steps]),
            "saved_exponent": exponent(values, megabytes),
        }
    return result


def exponent(values: tuple[int, ...], costs: list[float]) -> float:
    """Slope of the costs in log-log coordinates."""
    slope, _ = np.polyfit(np.log(values), np.log(costs), 1)
    return round(float(slope), 3)


def table(properties: dict[str, Row]) -> str:
    """The exponents in Markdown."""
    lines = [
        [
            f"{name}, {row['values'][0]} to {row['values'][-1]}",
            *(f"{row[method]['time_exponent']:z.2f} · {row[method]['saved_exponent']:z.2f}" for method in COMPARED),
        ]
        for name, row in properties.items()
    ]
    return markdown_table(["exponent of time · of saved bytes", *COMPARED], lines)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", choices=BASES, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--properties", choices=VALUES["cpu"], nargs="+", default=list(VALUES["cpu"]))
    parser.add_argument("--values", type=int, nargs="+", help="of the properties; the default depends on the device")
    parser.add_argument("--out", type=result_path, help="JSON file of the result")
    parser.add_argument("--picture", type=Path, help="PNG file of the curves")
    arguments = parser.parse_args()
    device, base = arguments.device, BASES[arguments.device]
    result: Row = {"machine": machine(device), "base": base, "rounds": arguments.rounds, "properties": {}}
    for name in arguments.properties:
        print(f"{name}: first steps", file=sys.stderr)
        values = tuple(arguments.values or VALUES[device][name])
        result["properties"][name] = measure(name, values, base, arguments.rounds, device)
    write_result(arguments.out, result)
    if arguments.picture is not None:
        draw_growth(result, arguments.picture)
    print(table(result["properties"]))


if __name__ == "__main__":
    main()
