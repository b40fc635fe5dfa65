"""Plots of a scaling law: losses against sizes, residuals, and contours of equal best sparsity.

This module imports matplotlib; import it only to draw.

Units:   single non-zero parameters · training FLOPs · loss · percent
Source:  colors of Okabe and Ito, which color-blind readers can distinguish.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slicefine_pl.cli.scaling.csv_columns import RunColumns
from slicefine_pl.scaling import ScalingLaw, costs
from slicefine_pl.scaling.files import SavedLaw
from slicefine_pl.scaling.units import format_count

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = "osD^vPX"
CONTOURS = (0.0, 0.5, 0.75, 0.875)


def plot_fit(saved: SavedLaw, runs: RunColumns) -> Figure:
    """Plot the law with the longest runs, the residuals of all runs, and the contours."""
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    axes = figure.subplots(1, 3)
    _fit_panel(axes[0], saved.law, runs)
    _residual_panel(axes[1], saved.law, runs)
    draw_contours(axes[2], saved)
    figure.suptitle(f"Scaling law of sparse models: {saved.source}", fontsize=11)
    return figure


def plot_advice(
    saved: SavedLaw, tokens_per_item: float, nonzero_params: float, flops: float, sparsities: Mapping[str, float]
) -> Figure:
    """Plot the contours and the position of the user's budget.

    Args:
        saved: The law.
        tokens_per_item: Tokens per image; 1 if data are tokens.
        nonzero_params: Non-zero parameters of the user's model.
        flops: The user's training budget in FLOPs.
        sparsities: Best sparsity by name of the cost.
    """
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    axes = figure.subplots()
    draw_contours(axes, saved, tokens_per_item, (nonzero_params, flops))
    axes.set(title="Best sparsity with unlimited data, and with yours")
    axes.plot(nonzero_params, flops, "*", color="black", markersize=16, zorder=5)
    best = "\n".join(f"{name}: {100 * sparsity:.0f} %" for name, sparsity in sparsities.items())
    axes.annotate(
        f"your budget and data\n{best}",
        (nonzero_params, flops),
        xytext=(0.03, 0.96),
        textcoords="axes fraction",
        va="top",
        arrowprops={"arrowstyle": "-", "color": "0.4", "shrinkB": 8},
        fontsize=9,
        bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": "0.6"},
    )
    return figure


def draw_contours(
    axes: Axes, saved: SavedLaw, tokens_per_item: float = 1.0, point: tuple[float, float] | None = None
) -> None:
    """Draw lines of equal best sparsity: solid at ideal cost, dashed at masked-dense cost."""
    low, high = saved.ranges.nonzero_params
    limits = [low, high, point[0]] if point else [low, high]
    sizes = np.geomspace(min(limits) / 2, max(limits) * 2, 50)
    axes.axvspan(low, high, color="0.93", zorder=0, label="sizes fitted")
    for sparsity, color in zip(CONTOURS, COLORS, strict=False):
        for cost, style in ((costs.ideal, "-"), (costs.masked_dense, "--")):
            flops = saved.law.contour(sparsity, cost) * saved.law.chinchilla_compute(sizes) * tokens_per_item
            words = f"{100 * sparsity:g} % best" if sparsity else "dense best below"
            axes.plot(sizes, flops, style, color=color, label=words if style == "-" else None)
    axes.plot([], [], "-", color="0.4", label="FLOPs follow non-zeros (ideal)")
    axes.plot([], [], "--", color="0.4", label="masked dense (today)")
    axes.set(xscale="log", yscale="log", xlim=(sizes[0], sizes[-1]))
    axes.set(xlabel="non-zero parameters, without embeddings", ylabel="training compute, FLOPs", title="Best sparsity")
    if tokens_per_item == 1 and saved.law.data_unit == "images":
        axes.set(ylabel="training compute, FLOPs per token of an image")
    axes.legend(fontsize=8, loc="lower right", framealpha=0.9)


def _fit_panel(axes: Axes, law: ScalingLaw, runs: RunColumns) -> None:
    longest = np.isclose(runs["data"], runs["data"].max())
    sizes = np.geomspace(runs["nonzero_params"].min() / 1.5, runs["nonzero_params"].max() * 1.5, 80)
    for sparsity, color, marker in zip(np.unique(runs["sparsity"]), COLORS * 9, MARKERS * 9, strict=False):
        own = longest & (runs["sparsity"] == sparsity)
        axes.plot(sizes, law.loss(sparsity, sizes, runs["data"].max()), "-", color=color, linewidth=1.2)
        axes.plot(
            runs["nonzero_params"][own], runs["loss"][own], marker, color=color, label=f"sparsity {100 * sparsity:g} %"
        )
    axes.set(xscale="log", xlabel="non-zero parameters, without embeddings", ylabel="validation loss")
    axes.set_title(f"Longest runs ({format_count(runs['data'].max())} {law.data_unit}) and the law")
    axes.legend(fontsize=8)


def _residual_panel(axes: Axes, law: ScalingLaw, runs: RunColumns) -> None:
    predicted = law.loss(runs["sparsity"], runs["nonzero_params"], runs["data"])
    percent = 100 * (predicted / runs["loss"] - 1)
    for sparsity, color, marker in zip(np.unique(runs["sparsity"]), COLORS * 9, MARKERS * 9, strict=False):
        own = runs["sparsity"] == sparsity
        axes.plot(runs["loss"][own], percent[own], marker, color=color, label=f"sparsity {100 * sparsity:g} %")
    axes.axhline(0, color="0.4", linewidth=1)
    axes.set(
        xlabel="measured validation loss",
        ylabel="error of the law, %",
        title="Error on all runs, same colors",
    )
