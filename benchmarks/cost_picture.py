"""Draw results of train_step.py for one network: step times at every rank, and where the memory goes at the middle one.

python benchmarks/cost_picture.py benchmarks/results/cost_minilm_r{1,8,64}.json docs/images/cost_minilm.png
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from report import peak, problem

NAMES = {
    "floor": "frozen network",
    "slice, column": "SliceFine, columns",
    "slice, row": "SliceFine, rows",
    "slice, alternate": "SliceFine, alternating",
    "slice, static": "static columns (PaCA's setting)",
    "lora": "LoRA",
    "lora, q and v": "LoRA, queries and values",
    "dora": "DoRA",
    "vera": "VeRA",
    "bitfit": "BitFit",
    "masked gradients": "masked gradients",
    "full": "full fine-tuning",
}
OURS, OTHERS = "#d1495b", "#5c677d"
MARKERS = "^os"
KEPT = {"parameters_mb": "#dfe2e6", "saved_mb": "#2b6777", "gradients_mb": "#e9c46a", "optimizer_mb": "#8d99ae"}


def draw(results: list[dict[str, Any]], target: Path) -> None:
    """Write the picture; ``results`` are of one network, by rank."""
    results = sorted(results, key=lambda result: result["rank"])
    middle = results[len(results) // 2]
    present = [name for result in results for name in result["rows"]]
    names = [
        (name + end, label + (", compiled" if end else ""))
        for name, label in NAMES.items()
        for end in ("", ", compiled")
        if name + end in present
    ]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 1.6 + 0.36 * len(names)), sharey=True, layout="constrained")
    _times(left, results, names)
    _memory(right, middle, names)
    left.set_yticks(range(len(names)), [label for _, label in names])
    left.set_ylim(len(names) - 0.5, -0.5)
    machine = middle["machine"]
    figure.suptitle(f"{problem(middle)}; {machine['device']}, {machine['date']}", fontsize=10)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def _times(axes: Axes, results: list[dict[str, Any]], names: list[tuple[str, str]]) -> None:
    """One marker a rank, with the spread over rounds; ours in red."""
    for place, result in enumerate(results):
        offset = 0.22 * (place - (len(results) - 1) / 2)
        for line, (name, _) in enumerate(names):
            if name not in result["rows"]:
                continue
            ratio = result["rows"][name]["time_vs_floor"]
            spread = [[ratio["median"] - ratio["p16"]], [ratio["p84"] - ratio["median"]]]
            colour = OURS if name.startswith("slice") else OTHERS
            axes.errorbar(
                ratio["median"], line + offset, xerr=spread, fmt=MARKERS[place % len(MARKERS)],
                color=colour, markersize=5, linewidth=1,
            )  # fmt: skip
        axes.plot([], [], MARKERS[place % len(MARKERS)], color=OTHERS, label=f"R = {result['rank']}")
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.legend(frameon=False, loc="upper right")
    axes.set_xlabel("step time, frozen network = 1 (bars: 16th to 84th percentile of rounds)")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _memory(axes: Axes, result: dict[str, Any], names: list[tuple[str, str]]) -> None:
    """What is kept, end to end; the number is the peak: the allocator's on a GPU, else the sum."""
    longest = 0.0
    for line, (name, _) in enumerate(names):
        row = result["rows"].get(name)
        if row is None:
            axes.text(0, line, " left out", va="center", fontsize=8, color=OTHERS)
            continue
        start = 0.0
        for part, colour in KEPT.items():
            axes.barh(line, row[part], left=start, height=0.6, color=colour)
            start += row[part]
        longest = max(longest, start)
        axes.text(start, line, f" {peak(row):,.0f}", va="center", fontsize=9)
    for part, colour in KEPT.items():
        axes.barh(0, 0, color=colour, label=part.removesuffix("_mb").replace("saved", "activations"))
    axes.legend(frameon=False, loc="upper right")
    axes.set(xlabel=f"memory, MB, R = {result['rank']}", xlim=(0, 1.12 * longest))
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    *sources, target = map(Path, sys.argv[1:])
    draw([json.loads(source.read_text()) for source in sources], target)


if __name__ == "__main__":
    main()
