"""The slice map: a picture of how much each line has changed, with one row for each matrix, and the same as a CSV.

Shapes:  size: lines of a matrix along the sliced axis
"""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slicefine_pl.analysis.plots import short_names
from slicefine_pl.files.atomic import write_atomic
from slicefine_pl.slicing import LineUpdates

BINS = 768  # along the horizontal axis; about the width of a row in pixels
GRAY = "#d9d9d9"  # for lines that were never visited; the color scale contains no gray
DPI = 110
MAX_NAMES = 240  # as many as fit next to the rows of the highest picture
COLUMNS = ("matrix", "axis", "index", "rms_change", "rms_before")

FloatArray = NDArray[np.float64]


def write_updates(path: Path, lines: Sequence[LineUpdates]) -> None:
    """Write a CSV with a row for each visited line: its matrix, axis and index, its RMS change and its RMS before."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for each in lines:
        change, before = each.rms_change.tolist(), each.rms_before.tolist()
        writer.writerows(
            (each.name, each.axis, index, f"{change[index]:.6g}", f"{before[index]:.6g}")
            for index in each.visited.nonzero().flatten().tolist()
        )
    write_atomic(path, text.getvalue())


def relative_changes(each: LineUpdates) -> FloatArray:
    """Return each line's RMS change, relative to the RMS of all visited lines of its matrix before training."""
    scale = (each.before.nanmean() / each.length).sqrt()  # 0 for a matrix of zeros, whose changes become inf
    change: FloatArray = each.rms_change.where(each.squares == 0, each.rms_change / scale).numpy()
    return change


def bin_lines(values: FloatArray, bins: int = BINS) -> FloatArray:
    """Bin the values of lines by relative position along the axis.

    Args:
        values: Values, shape ``(size,)``; NaN for lines that were never visited.
        bins: Number of bins.

    Returns:
        Root mean square of the visited lines of each bin, shape ``(bins,)``; NaN if there are none. With fewer lines
        than bins, each bin has the value of the line at its center.
    """
    size = len(values)
    if size <= bins:
        shown: FloatArray = values[((np.arange(bins) + 0.5) * size / bins).astype(int)]
        return shown
    place = np.arange(size) * bins // size
    visited = ~np.isnan(values)
    count = np.bincount(place[visited], minlength=bins)
    total = np.bincount(place[visited], values[visited] ** 2, minlength=bins)
    mean: FloatArray = np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)
    return np.sqrt(mean)


def plot_map(lines: Sequence[LineUpdates], steps: str) -> Any:
    """Draw the map as a matplotlib figure.

    Args:
        lines: Changes of the lines of each matrix; columns and rows if they alternated.
        steps: Description of the steps in which they changed, for the title.

    Returns:
        The figure, not saved.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [[each for each in lines if each.axis == kind] for kind in dict.fromkeys(each.axis for each in lines)]
    changes = [[100 * relative_changes(each) for each in panel] for panel in panels]
    names, prefix = short_names([each.name for each in panels[0]])
    height = min(max(0.16 * len(names), 2.2), 24)
    figure = Figure(figsize=(5 + 8.5 * len(panels), height + 1.4), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    places = figure.subplots(1, 2 * len(panels), squeeze=False, width_ratios=[7, 1] * len(panels))[0]
    scale = _scale([values for panel in changes for values in panel])
    for panel, values, field, points in zip(panels, changes, places[::2], places[1::2], strict=True):
        image = _plot_heatmap(field, panel, values, scale)
        _plot_means(points, values, scale)
    _label_rows(places[0], names, min(7, 50 * height / len(names)))
    bar = figure.colorbar(image, ax=places, shrink=min(1, 2.6 / height), aspect=18, pad=0.01, extend="min")
    bar.set_label("RMS change of a line,\n% of its matrix's RMS before")
    bar.minorticks_off()
    bar.set_ticks(ticks := _ticks(scale), labels=[f"{value:g}" for value in ticks])
    of_what = f"slices of {prefix}" if prefix else "slices"
    figure.suptitle(f"What the {of_what} have learned in {steps}", x=0.01, ha="left", fontsize=11)
    return figure


def _scale(changes: Sequence[FloatArray]) -> Any:
    """Return a logarithmic color scale, because some matrices change ten times as much as others.

    It starts at a round number below the 2 % quantile of the visited lines, and ends at a round number above all.
    """
    from matplotlib.colors import LogNorm

    seen = np.concatenate([values[(values > 0) & np.isfinite(values)] for values in changes])
    if not seen.size:
        return LogNorm(0.1, 1, clip=True)
    top = float(seen.max())
    low = max(float(np.quantile(seen, 0.02)), top / 1000)
    rounds = _rounds(low, top)
    return LogNorm(max(value for value in rounds if value <= low), min(value for value in rounds if value > top), True)


def _rounds(low: float, top: float) -> list[float]:
    """Return 1, 2, 5, 10, 20 ... from below ``low`` to above ``top``."""
    exponents = range(math.floor(math.log10(low)), math.floor(math.log10(top)) + 2)
    return [float(f"{digit}e{exponent}") for exponent in exponents for digit in (1, 2, 5)]


def _ticks(scale: Any) -> list[float]:
    return [value for value in _rounds(scale.vmin, scale.vmax) if scale.vmin <= value <= scale.vmax]


def _plot_heatmap(axes: Any, panel: Sequence[LineUpdates], changes: Sequence[FloatArray], scale: Any) -> Any:
    from matplotlib import colormaps

    field = np.stack([bin_lines(values) for values in changes])
    colors = colormaps["viridis"].with_extremes(bad=GRAY)
    place = {"aspect": "auto", "extent": (0, 1, len(field), 0), "interpolation": "nearest"}
    image = axes.imshow(field, cmap=colors, norm=scale, **place)
    axes.hlines(range(1, len(field)), 0, 1, color="white", linewidth=0.6)
    visited, size = sum(int(each.visited.sum()) for each in panel), sum(len(each.visited) for each in panel)
    kind = panel[0].axis
    title = f"{visited:,} of {size:,} {kind}s were visited ({visited / size:.0%}); gray: never"
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(f"position of the {kind} in its matrix, from 0 (first) to 1 (last)")
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return image


def _plot_means(axes: Any, changes: Sequence[FloatArray], scale: Any) -> None:
    """Plot the RMS change of all visited lines of each matrix, to the right of the map."""
    means = [float(np.sqrt(np.mean(values[values >= 0] ** 2))) if (values >= 0).any() else np.nan for values in changes]
    shown = np.clip(means, scale.vmin, scale.vmax)  # like the colors
    axes.scatter(shown, np.arange(len(means)) + 0.5, c=shown, cmap="viridis", norm=scale, s=22, clip_on=False)
    axes.set(xscale="log", xlim=(scale.vmin, scale.vmax), ylim=(len(means), 0), yticks=[])
    ticks = _ticks(scale)
    axes.set_xticks(ticks[:: -(-len(ticks) // 3)], [f"{value:g}" for value in ticks[:: -(-len(ticks) // 3)]])
    axes.set_xticks([], minor=True)
    axes.grid(axis="x", color=GRAY)
    axes.set_xlabel("visited lines\ntogether, %")
    axes.spines[["top", "right", "left"]].set_visible(False)


def _label_rows(axes: Any, names: Sequence[str], fontsize: float) -> None:
    """Label the rows, or every n-th row if there are too many."""
    places = range(0, len(names), -(-len(names) // MAX_NAMES))
    axes.set_yticks([place + 0.5 for place in places], [names[place] for place in places], fontsize=max(fontsize, 5))
    axes.tick_params(axis="y", length=0)
