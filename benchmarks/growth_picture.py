"""Draw a result of growth.py: time and saved bytes over each knob, with their exponents.

python benchmarks/growth_picture.py benchmarks/results/growth.json docs/images/growth.png
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

# method: name, colour, marker
LINES = {
    "lora": ("LoRA", "#2b6777", "s"),
    "slice, column": ("SliceFine, columns", "#d1495b", "o"),
    "floor": ("frozen network", "#8d99ae", "^"),
}


def draw(result: dict[str, Any], target: Path) -> None:
    """Write the picture: a column of axes a knob, time above, saved bytes below."""
    knobs = result["knobs"]
    figure, axes = plt.subplots(2, len(knobs), figsize=(3.4 * len(knobs), 6), layout="constrained", squeeze=False)
    for column, (knob, told) in enumerate(knobs.items()):
        times = {method: [step["median"] for step in told[method]["step_ms"]] for method in LINES}
        saved = {method: told[method]["saved_mb"] for method in LINES}
        _curves(axes[0, column], told, times, "time_exponent")
        _curves(axes[1, column], told, saved, "saved_exponent")
        axes[1, column].set_xlabel(knob)
    axes[0, 0].set_ylabel("step, ms")
    axes[1, 0].set_ylabel("saved for backward, MB")
    handles = [Line2D([], [], color=colour, marker=marker, label=name) for name, colour, marker in LINES.values()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(LINES), frameon=False)
    base, machine = (", ".join(f"{name} {value}" for name, value in result["base"].items()), result["machine"])
    told = f"numbers: slopes in these log-log coordinates\nelse {base}; {machine['device']}, {machine['date']}"
    figure.supxlabel(told, fontsize=9)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def _curves(axes: Axes, told: dict[str, Any], costs: dict[str, list[float]], exponent: str) -> None:
    for place, (method, (_, colour, marker)) in enumerate(LINES.items()):
        axes.loglog(told["values"], costs[method], color=colour, marker=marker, markersize=5)
        label = f"{told[method][exponent]:.2f}"
        axes.text(0.04, 0.95 - 0.09 * place, label, color=colour, transform=axes.transAxes, va="top", weight="bold")
    axes.xaxis.set_major_locator(FixedLocator(told["values"]))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    everything = [cost for values in costs.values() for cost in values]
    axes.set_ylim(min(everything) / 1.3, max(everything) * 2.2)  # room for the exponents
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    draw(json.loads(source.read_text()), target)


if __name__ == "__main__":
    main()
