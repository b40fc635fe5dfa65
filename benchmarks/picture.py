"""Draw the picture of README.md: how a slice moves, and what a step costs by a result of train_step.py.

python benchmarks/picture.py benchmarks/results/cost_minilm_r8.json docs/images/slicefine.png
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

LIVE, VISITED, FROZEN = "#d1495b", "#f0b8be", "#e8eaed"
NAMES = {
    "floor": "frozen network",
    "slice, column": "SliceFine, columns",
    "slice, row": "SliceFine, rows",
    "lora, q and v": "LoRA, queries and values only",
    "lora": "LoRA",
    "dora": "DoRA",
    "masked gradients": "masked gradients",
    "full": "full fine-tuning",
}


def draw_weight(axes: Axes, moves: int, columns: int = 10, rows: int = 6, rank: int = 2) -> None:
    """One weight matrix after some moves: what is live, what was, what never."""
    for column in range(columns):
        colour = LIVE if column // rank == moves else VISITED if column // rank < moves else FROZEN
        for row in range(rows):
            axes.add_patch(Rectangle((column, row), 0.9, 0.9, color=colour, linewidth=0))
    axes.set(
        xlim=(-0.2, columns + 0.1),
        ylim=(-0.2, rows + 0.1),
        aspect="equal",
        title=f"after {moves} move{'' if moves == 1 else 's'}",
    )
    axes.axis("off")


def draw_bars(axes: Axes, rows: dict[str, Any], value: str, title: str) -> None:
    """One bar a method, the longest below."""
    names = [name for name in NAMES if name in rows]
    values = [
        rows[name][value]["median"] if isinstance(rows[name][value], dict) else rows[name][value] for name in names
    ]
    colours = [LIVE if name.startswith("slice") else "#8d99ae" for name in names]
    bars = axes.barh([NAMES[name] for name in names], values, color=colours)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.invert_yaxis()
    axes.set(title=title, xlim=(0, 1.15 * max(values)))
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    result = json.loads(source.read_text())
    figure = plt.figure(figsize=(12, 5.2), layout="constrained")
    places = figure.add_gridspec(2, 1, height_ratios=(1, 1.7))
    above, below = figure.add_subfigure(places[0]), figure.add_subfigure(places[1])
    for moves, axes in enumerate(above.subplots(1, 4)):
        draw_weight(axes, moves)
    above.suptitle("red: the slice that is trained now   ·   pink: keeps what it learned   ·   grey: never touched")
    left, right = below.subplots(1, 2)
    draw_bars(left, result["rows"], "time_vs_floor", "step time, frozen network = 1")
    draw_bars(right, result["rows"], "saved_vs_floor", "activations kept for backward, frozen network = 1")
    right.set_yticklabels([])
    machine = result["machine"]
    below.supxlabel(
        f"BERT of MiniLM's size, 16 x 128 tokens, R = {result['rank']}; {machine['device']}, {machine['date']}",
        fontsize=9,
    )
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main()
