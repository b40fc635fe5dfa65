"""Draw results of ``benchmarks.step_cost``: one network at several ranks, growth, and the overview of README.md.

python -m benchmarks.step_cost.pictures network benchmarks/results/cost_vit_r{1,8,64}.json docs/images/cost_vit.png
python -m benchmarks.step_cost.pictures growth benchmarks/results/growth.json docs/images/growth.png
python -m benchmarks.step_cost.pictures overview benchmarks/results/cost_minilm_r8.json docs/images/slicefine.png
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks.harness.plots import DPI, LABELS, OTHERS, SLICES, color_of, open_frame
from benchmarks.harness.results import Row, argument_parser, read_result
from benchmarks.step_cost.report import peak, problem
from slicefine_pl.analysis.plots import save_figure

MARKERS = "^os"  # of the ranks
PARTS = {"parameters": "#dfe2e6", "saved": "#2b6777", "gradients": "#e9c46a", "optimizer": "#8d99ae"}
CURVES = {"lora": ("#2b6777", "s"), "slice, column": (SLICES, "o"), "frozen baseline": ("#8d99ae", "^")}
VISITED, NEVER = "#f0b8be", "#e8eaed"
OVERVIEW = (
    "frozen baseline", "slice, column", "slice, row", "lora, q and v", "lora", "dora", "masked gradients", "full",
)  # fmt: skip


def draw_network(results: Sequence[Row], target: Path) -> None:
    """Step times at every rank, and memory at the middle one; ``results`` are of one network."""
    results = sorted(results, key=lambda result: int(result["rank"]))
    middle = results[len(results) // 2]
    present = {name for result in results for name in result["rows"]}
    names = [name + end for name in LABELS for end in ("", ", compiled") if name + end in present]
    figure = Figure(figsize=(12, 1.6 + 0.36 * len(names)), layout="constrained", dpi=DPI)
    left, right = figure.subplots(1, 2, sharey=True)
    _times(left, results, names)
    _memory(right, middle, names)
    left.set_yticks(range(len(names)), [_label(name) for name in names])
    left.set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle(f"{problem(middle)}; {_machine(middle)}", fontsize=10)
    save_figure(figure, target)


def _label(name: str) -> str:
    method = name.removesuffix(", compiled")
    return LABELS[method] + name.removeprefix(method)


def _machine(result: Row) -> str:
    return f"{result['machine']['device']}, {result['machine']['date']}"


def _times(axes: Axes, results: Sequence[Row], names: Sequence[str]) -> None:
    """One marker per rank, with the spread over rounds; slices in red."""
    for place, result in enumerate(results):
        offset, marker = 0.22 * (place - (len(results) - 1) / 2), MARKERS[place % len(MARKERS)]
        for line, name in enumerate(names):
            if name not in result["rows"]:
                continue
            ratio = result["rows"][name]["time_vs_baseline"]
            spread = [[ratio["median"] - ratio["p16"]], [ratio["p84"] - ratio["median"]]]
            axes.errorbar(
                ratio["median"], line + offset, xerr=spread, fmt=marker,
                color=color_of(name), markersize=5, linewidth=1,
            )  # fmt: skip
        axes.plot([], [], marker, color=OTHERS, label=f"R = {result['rank']}")
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.legend(frameon=False, loc="upper right")
    axes.set_xlabel("step time, frozen baseline = 1 (bars: 16th to 84th percentile of rounds)")
    open_frame(axes, "x")


def _memory(axes: Axes, result: Row, names: Sequence[str]) -> None:
    """Stacked parts of the memory; the figure next to them is the peak."""
    longest = 0.0
    for line, name in enumerate(names):
        row = result["rows"].get(name)
        if row is None:
            axes.text(0, line, " left out", va="center", fontsize=8, color=OTHERS)
            continue
        end = 0.0
        for part, color in PARTS.items():
            axes.barh(line, row[f"{part}_mb"], left=end, height=0.6, color=color)
            end += row[f"{part}_mb"]
        longest = max(longest, end)
        axes.text(end, line, f" {peak(row):,.0f}", va="center", fontsize=9)
    for part, color in PARTS.items():
        axes.barh(0, 0, color=color, label=part.replace("saved", "activations"))
    axes.legend(frameon=False, loc="upper right")
    axes.set(xlabel=f"memory, MB, R = {result['rank']}", xlim=(0, 1.12 * longest))
    open_frame(axes)


def draw_growth(result: Row, target: Path) -> None:
    """One column of axes per property: time above, saved bytes below, with their exponents."""
    properties = result["properties"]
    figure = Figure(figsize=(3.4 * len(properties), 6), layout="constrained", dpi=DPI)
    axes = figure.subplots(2, len(properties), squeeze=False)
    for column, (name, row) in enumerate(properties.items()):
        times = {method: [step["median"] for step in row[method]["step_ms"]] for method in CURVES}
        saved = {method: row[method]["saved_mb"] for method in CURVES}
        _curves(axes[0, column], row, times, "time_exponent")
        _curves(axes[1, column], row, saved, "saved_exponent")
        axes[1, column].set_xlabel(name)
    axes[0, 0].set_ylabel("step, ms")
    axes[1, 0].set_ylabel("saved for backward, MB")
    handles = [
        Line2D([], [], color=color, marker=marker, label=LABELS[method]) for method, (color, marker) in CURVES.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(CURVES), frameon=False)
    base = ", ".join(f"{name} {value}" for name, value in result["base"].items())
    caption = f"numbers: slopes in these log-log coordinates\notherwise {base}; {_machine(result)}"
    figure.supxlabel(caption, fontsize=9)
    save_figure(figure, target)


def _curves(axes: Axes, row: Row, costs: dict[str, list[float]], exponent: str) -> None:
    for place, (method, (color, marker)) in enumerate(CURVES.items()):
        axes.loglog(row["values"], costs[method], color=color, marker=marker, markersize=5)
        label = f"{row[method][exponent]:z.2f}"
        axes.text(0.04, 0.95 - 0.09 * place, label, color=color, transform=axes.transAxes, va="top", weight="bold")
    axes.xaxis.set_major_locator(FixedLocator(row["values"]))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    everything = [cost for values in costs.values() for cost in values]
    axes.set_ylim(min(everything) / 1.3, max(everything) * 2.2)  # room for the exponents
    open_frame(axes, "both")


def draw_overview(result: Row, target: Path) -> None:
    """How a slice moves, and what a step costs."""
    figure = Figure(figsize=(12, 5.2), layout="constrained", dpi=DPI)
    rows = figure.add_gridspec(2, 1, height_ratios=(1, 1.7))
    above, below = figure.add_subfigure(rows[0]), figure.add_subfigure(rows[1])
    for moves, axes in enumerate(above.subplots(1, 4)):
        _weight(axes, moves)
    above.suptitle("red: trained now   ·   pink: trained before, keeps what it learned   ·   gray: not trained so far")
    left, right = below.subplots(1, 2)
    _bars(left, {name: row["time_vs_baseline"]["median"] for name, row in result["rows"].items()}, "step time")
    _bars(
        right, {name: row["saved_vs_baseline"] for name, row in result["rows"].items()}, "activations kept for backward"
    )
    right.set_yticklabels([])
    below.supxlabel(f"{problem(result)}, R = {result['rank']}; {_machine(result)}", fontsize=9)
    save_figure(figure, target)


def _weight(axes: Axes, moves: int, columns: int = 10, rows: int = 6, rank: int = 2) -> None:
    """A weight matrix after some moves of its slice."""
    for column in range(columns):
        color = SLICES if column // rank == moves else VISITED if column // rank < moves else NEVER
        for row in range(rows):
            axes.add_patch(Rectangle((column, row), 0.9, 0.9, color=color, linewidth=0))
    title = f"after {moves} move{'' if moves == 1 else 's'}"
    axes.set(xlim=(-0.2, columns + 0.1), ylim=(-0.2, rows + 0.1), aspect="equal", title=title)
    axes.axis("off")


def _bars(axes: Axes, values: dict[str, float], title: str) -> None:
    """One bar per method."""
    names = [name for name in OVERVIEW if name in values]
    lengths = [values[name] for name in names]
    colors = [SLICES if name.startswith("slice") else "#8d99ae" for name in names]
    bars = axes.barh([LABELS[name] for name in names], lengths, color=colors)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.invert_yaxis()
    axes.set(title=f"{title}, frozen baseline = 1", xlim=(0, 1.15 * max(lengths)))
    open_frame(axes)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("picture", choices=("network", "growth", "overview"))
    parser.add_argument("results", type=Path, nargs="+", help="JSON files; several only for one network's ranks")
    parser.add_argument("target", type=Path, help="PNG file")
    arguments = parser.parse_args()
    results = [read_result(path) for path in arguments.results]
    if arguments.picture == "network":
        draw_network(results, arguments.target)
        return
    if len(results) != 1:
        parser.error(f"{arguments.picture} shows one result, but {len(results)} were given.")
    draw = draw_growth if arguments.picture == "growth" else draw_overview
    draw(results[0], arguments.target)


if __name__ == "__main__":
    main()
