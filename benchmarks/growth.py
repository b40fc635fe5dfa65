"""How does a training step grow with rank, width, depth and tokens: column slices, LoRA, the floor?

python benchmarks/growth.py --rounds 9 --out benchmarks/results/growth.json --picture docs/images/growth.png

BERTs of many sizes, each knob turned alone from one base size; for a knob, all methods at all its values take turns in
one run.  Reported is the exponent: the slope of a straight line through the logarithms of step time (median) or saved
bytes against that of the knob.  0 means that it costs nothing, 1 that twice as much costs twice as much.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contestants import METHODS, Contestant, enter
from growth_picture import draw
from interleave import compete
from machine import machine, percentiles
from memory import saved_bytes
from networks import bert

COMPARED = ("floor", "slice, column", "lora")
HEAD = 32  # width of an attention head, so that every width is a multiple
BASES = {
    "cpu": {"rank": 8, "width": 256, "depth": 4, "tokens": 128, "batch": 4},
    "cuda": {"rank": 8, "width": 1024, "depth": 8, "tokens": 256, "batch": 32},
}
KNOBS = {
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


def enter_at(size: dict[str, int], method: str, device: str) -> Contestant:
    """A contestant in a BERT of a size."""
    torch.manual_seed(0)
    task = bert(size["width"], size["depth"], size["width"] // HEAD, size["batch"], size["tokens"])
    task.net.train()
    return enter(task.to(device, torch.float32), METHODS[method], size["rank"], device)


def turn(knob: str, values: tuple[int, ...], base: dict[str, int], rounds: int, device: str) -> dict[str, Any]:
    """Turn one knob: time and bytes of each method at each value, and their exponents."""
    named = {f"{method} {value}": (method, value) for method, value in itertools.product(COMPARED, values)}
    contestants = {name: enter_at({**base, knob: value}, method, device) for name, (method, value) in named.items()}
    saved = {name: saved_bytes(contestant) / 1e6 for name, contestant in contestants.items()}
    times = list(compete(contestants, rounds, device))
    told: dict[str, Any] = {"values": list(values)}
    for method in COMPARED:
        names = [f"{method} {value}" for value in values]
        steps = [percentiles([1e3 * row[name]["step"] for row in times]) for name in names]
        kept = [round(saved[name], 3) for name in names]
        told[method] = {
            "step_ms": steps,
            "saved_mb": kept,
            "time_exponent": exponent(values, [step["median"] for step in steps]),
            "saved_exponent": exponent(values, kept),
        }
    return told


def exponent(values: tuple[int, ...], costs: list[float]) -> float:
    """Slope of the costs in log-log coordinates."""
    slope, _ = np.polyfit(np.log(values), np.log(costs), 1)
    return round(float(slope), 3) + 0.0  # no minus before a zero


def table(knobs: dict[str, Any]) -> str:
    """The exponents in Markdown."""
    lines = [f"| exponent of time · of saved bytes | {' | '.join(COMPARED)} |", "|---" * (1 + len(COMPARED)) + "|"]
    for knob, told in knobs.items():
        cells = [f"{told[method]['time_exponent']:.2f} · {told[method]['saved_exponent']:.2f}" for method in COMPARED]
        lines.append(f"| {knob}, {told['values'][0]} to {told['values'][-1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", choices=BASES, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--knob", choices=KNOBS["cpu"], nargs="+", default=list(KNOBS["cpu"]))
    parser.add_argument("--values", type=int, nargs="+", help="of the knobs, instead of what suits the device")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    parser.add_argument("--picture", type=Path, help="PNG file for the curves")
    arguments = parser.parse_args()
    device, base = arguments.device, BASES[arguments.device]
    result: dict[str, Any] = {"machine": machine(device), "base": base, "rounds": arguments.rounds, "knobs": {}}
    for knob in arguments.knob:
        print(f"{knob}: first steps", file=sys.stderr)
        values = tuple(arguments.values or KNOBS[device][knob])
        result["knobs"][knob] = turn(knob, values, base, arguments.rounds, device)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.picture is not None:
        draw(result, arguments.picture)
    print(table(result["knobs"]))


if __name__ == "__main__":
    main()
