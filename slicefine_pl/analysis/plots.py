"""Plots of the measurements: spectra, task energy, kernels and slice gradients.

Matplotlib is imported when a plot is drawn.

Source:  colors of Okabe and Ito, which color-blind readers can distinguish.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from slicefine_pl.analysis.kernel import spectrum
from slicefine_pl.analysis.spectra import Balance
from slicefine_pl.analysis.task_energy import explained_variance, task_directions
from slicefine_pl.analysis.winners import Winners
from slicefine_pl.files.atomic import write_atomic
from slicefine_pl.slicing.schedule import Axis

BLUE, ORANGE, GREEN, GRAY, RED = "#0072B2", "#E69F00", "#009E73", "0.55", "#D55E00"
ROUNDING = 1e-7  # share of the trace below which an eigenvalue of float32 gradients is noise
COLORS: dict[Axis, str] = {"row": BLUE, "column": ORANGE}
MARKS: dict[Axis, str] = {"row": "o", "column": "s"}
SHIFTS: dict[Axis, float] = {"row": -0.16, "column": 0.16}  # vertical, within a control's row of the plot


def save_figure(figure: Any, path: str | Path, dpi: int | None = None) -> Path:
    """Write a figure atomically, in the format of the file's suffix; PNG without a suffix.

    Args:
        figure: A matplotlib figure.
        path: File to write.
        dpi: Resolution; by default that of the figure.

    Raises:
        OSError: The file cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(path).suffix.removeprefix(".") or "png", dpi=dpi or "figure")
    return write_atomic(path, buffer.getbuffer())


def png_bytes(figure: Any) -> bytes:
    """Render a figure as the bytes of a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(buffer)
    return buffer.getvalue()


def plot_spectra(balances: Mapping[str, Mapping[Axis, Mapping[str, Balance]]]) -> Any:
    """Plot both spreads of every matrix for each control, and the decay of one matrix's groups.

    Args:
        balances: Balance by control, axis and name of the matrix; the first control is the network itself.
    """
    figure, axes = _figure((1, 3), (15, 5))
    spreads = {
        "spread_of_means": ("Do groups differ in size?", "spread of means: standard deviation / mean"),
        "spread_of_decay": ("Do groups differ in shape?", "spread of decay: distance from the average curve"),
    }
    for panel, (measure, (title, words)) in zip(axes, spreads.items(), strict=False):
        for place, by_line in enumerate(balances.values()):
            for line, shift in SHIFTS.items():
                values = [getattr(each, measure) for each in by_line.get(line, {}).values()]
                heights = place + shift + np.linspace(-0.1, 0.1, len(values))
                label = f"{line}s of one matrix" if place == 0 else None
                panel.plot(values, heights, MARKS[line], color=COLORS[line], ms=3, alpha=0.6, label=label)
                if values:
                    panel.plot([np.median(values)] * 2, [place + shift - 0.15, place + shift + 0.15], color="black")
        panel.set(xscale="log", yticks=range(len(balances)), yticklabels=list(balances) if panel is axes[0] else [])
        panel.set(xlabel=f"{words}\n(0: all groups alike)", title=title)
        panel.invert_yaxis()
        panel.grid(axis="x", alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=9)
    _decay(axes[2], balances)
    figure.suptitle("Spectral balance; black bars are medians over the matrices", fontsize=12)
    return figure


def _decay(axes: Any, balances: Mapping[str, Mapping[Axis, Mapping[str, Balance]]]) -> None:
    """Plot the normalized eigenvalues of each group, for the matrix with the median spread of decay."""
    first, by_line = next(iter(balances.items()))
    line, own = next(iter(by_line.items()))
    name = sorted(own, key=lambda each: own[each].spread_of_decay)[len(own) // 2]
    for control, color in (("Gaussian", GRAY), (first, BLUE)):
        for number, curve in enumerate(balances[control][line][name].decay):
            label = f"{control}, one curve per group" if number == 0 else None
            axes.plot(np.arange(1, len(curve) + 1), curve, color=color, lw=1, alpha=0.8, label=label)
    axes.set(yscale="log", xlabel="index of the eigenvalue", ylabel="eigenvalue / sum")
    axes.set_title(f"Decay of the {line} groups of\n{name}", fontsize=10)
    axes.set_ylim(bottom=max(float(own[name].decay.min()) / 2, ROUNDING))
    axes.legend(fontsize=8)


def plot_task_energy(
    layers: Sequence[tuple[str, Tensor]], others: Sequence[tuple[str, Tensor]], rank: int, share: float
) -> Any:
    """Plot the explained variance of every layer's inputs, and the directions that contain the share τ.

    Args:
        layers: Name and squared singular values of each layer's inputs, in the order of the network.
        others: The same for the network without pretraining; may be empty.
        rank: Rows or columns of the slices.
        share: τ, in (0, 1].
    """
    from matplotlib import colormaps

    figure, (left, right) = _figure((1, 2), (14, 5.6), widths=(1, 1.35))
    curves = [explained_variance(energies).numpy() for _, energies in layers]
    for _, energies in others:
        curve = explained_variance(energies).numpy()
        left.plot(np.arange(1, len(curve) + 1), curve, color="0.8", lw=1)
    for number, curve in enumerate(curves):
        depth = colormaps["viridis"](number / max(1, len(curves) - 1) * 0.9)
        left.plot(np.arange(1, len(curve) + 1), curve, color=depth, lw=1.2)
    left.axvline(rank, color=RED, ls="--", label=f"rank {rank} of the slices")
    left.axhline(share, color="black", ls=":", label=f"τ = {share:g}")
    left.plot([], [], color=colormaps["viridis"](0.0), label="first layer")
    left.plot([], [], color=colormaps["viridis"](0.9), label="last layer")
    if others:
        left.plot([], [], color="0.8", label="without pretraining")
    left.set(xscale="log", ylim=(0, 1.02), xlabel="directions k", ylabel="share of the variance, CEV(k)")
    left.set_title("Variance of each layer's inputs in k directions")
    left.legend(fontsize=8, loc="lower right")
    for found, color, mark, words in ((layers, BLUE, "o", "this network"), (others, GRAY, "x", "without pretraining")):
        counts = [task_directions(energies, share) for _, energies in found]
        right.plot(range(len(found)), counts, mark, color=color, ms=6, label=words if found else None)
    widths = [len(energies) for _, energies in layers]
    right.plot(range(len(layers)), widths, "_", color="black", ms=9, label="inputs of the layer")
    right.axhline(rank, color=RED, ls="--", label=f"rank {rank} of the slices")
    right.set(yscale="log", ylabel=f"directions that contain {share:.0%} of the variance")
    right.set_title(f"k_task({share:g}) by layer, first to last")
    right.set_xticks(range(len(layers)), short_names([name for name, _ in layers])[0], rotation=90, fontsize=8)
    right.grid(axis="y", alpha=0.3)
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def plot_kernels(kernels: Mapping[str, Tensor]) -> Any:
    """Plot each kernel divided by its mean diagonal, and its eigenvalues.

    Args:
        kernels: Kernels of shape ``(M, M)`` by title.
    """
    figure, axes = _figure((1, len(kernels) + 1), (3.2 * len(kernels) + 4.6, 3.9), (*[1] * len(kernels), 1.4))
    scaled = {words: (kernel / kernel.diagonal().mean()).numpy() for words, kernel in kernels.items()}
    most = max(np.abs(each).max() for each in scaled.values())
    image = None
    for panel, (words, values) in zip(axes, scaled.items(), strict=False):
        image = panel.imshow(values, cmap="PuOr_r", vmin=-most, vmax=most, interpolation="nearest")
        panel.set(xticks=[], yticks=[], xlabel="outputs of the samples")
        panel.set_title(words, fontsize=10)
    figure.colorbar(image, ax=list(axes[: len(kernels)]), shrink=0.75, label="K / mean diagonal")
    for (words, kernel), color, mark in zip(kernels.items(), (BLUE, ORANGE, GRAY, GREEN), "osxd", strict=False):
        eigenvalues = spectrum(kernel).eigenvalues
        shares = (eigenvalues / eigenvalues.sum()).numpy()
        shares = shares[shares > ROUNDING]
        axes[-1].plot(np.arange(1, len(shares) + 1), shares, mark + "-", color=color, ms=3, lw=1, label=words)
    axes[-1].set(yscale="log", xlabel="index of the eigenvalue", ylabel="eigenvalue / sum")
    axes[-1].set_title("Spectra of the kernels", fontsize=10)
    axes[-1].legend(fontsize=7)
    return figure


def plot_winners(found: Winners, control: Winners | None) -> Any:
    """Plot measured against predicted decrease, the energy of the slices, and their full steps.

    Args:
        found: Result for the network.
        control: Result for the network without pretraining, if it was measured.
    """
    figure, axes = _figure((2, 2), (13, 9.2))
    for panel, measured, words in zip(
        axes[0], ("decrease", "held_out"), ("the examples of the gradient", "held-out examples"), strict=True
    ):
        _steps(panel, found, measured)
        panel.set_title(f"One small step: loss on {words}", fontsize=11)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    networks = [(found, BLUE, "o", "this network"), (control, GRAY, "x", "without pretraining")]
    for winners, color, mark, words in networks:
        if winners is not None:
            _ranked(axes[1][0], [step.energy / step.parameters for step in winners.slices], color, mark, words)
            own, held_out = (
                [getattr(s, each) / s.predicted for s in winners.full] for each in ("decrease", "held_out")
            )
            _ranked(axes[1][1], own, color, mark, f"{words}, own examples")
            _ranked(axes[1][1], held_out, color, mark, f"{words}, held-out examples", filled=False)
    axes[1][0].set(xscale="log", xlabel="share of the gradient's energy / share of the parameters")
    axes[1][0].axvline(1, color="black", ls=":", label="proportional to size")
    axes[1][0].set_title("Share of the gradient in one slice", fontsize=11)
    axes[1][1].axvline(0, color="black", lw=0.8)
    axes[1][1].axvline(1, color="black", ls=":", label="as predicted")
    axes[1][1].set_xscale("symlog", linthresh=1)
    axes[1][1].set_xlabel("measured / predicted decrease of the loss (below 0: it rose)")
    axes[1][1].set_title("One full step: the slice alone does the work of all weights", fontsize=11)
    for panel in axes[1]:
        panel.set(ylim=(0, 1), ylabel="share of candidates below")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    return figure


def _ranked(axes: Any, values: list[float], color: str, mark: str, words: str, filled: bool = True) -> None:
    """Plot the cumulative distribution of values."""
    shares = (np.arange(len(values)) + 0.5) / len(values)
    style = "-" if filled else ":"
    axes.plot(sorted(values), shares, mark + style, color=color, ms=4, lw=1, label=words)


def _steps(axes: Any, found: Winners, measured: str) -> None:
    """Plot measured against predicted decrease for every kind of step."""
    slices = {axis: [step for step in found.slices if step.kind == axis] for axis in COLORS}
    kinds = [(slices[axis], COLORS[axis], MARKS[axis], 5, f"one slice of {axis}s") for axis in COLORS]
    kinds += [(found.layers, GREEN, "D", 5, "one whole layer"), ([found.together], RED, "P", 12, "slices together")]
    kinds += [([found.everything], "black", "*", 14, "all layers, dense")]
    every = [step for steps, *_ in kinds for step in steps if step.predicted > 0]
    low, high = (end(step.predicted for step in every) for end in (min, max))
    axes.plot([low, high], [low, high], color=GRAY, lw=1, ls="--", label="first order: lr · ||g||²", zorder=0)
    for steps, color, mark, size, words in kinds:
        x, y = ([getattr(step, each) for step in steps] for each in ("predicted", measured))
        axes.plot(x, y, mark, color=color, ms=size, alpha=0.75, ls="none", label=words)
    values = [getattr(step, measured) for step in every]
    axes.set(xscale="log", xlabel="predicted decrease of the loss, lr · ||g||²", ylabel="measured decrease of the loss")
    linear = max(low, found.resolution)  # smaller values are rounding
    axes.set_yscale("symlog", linthresh=linear)
    axes.set_ylim(min(-linear, 3 * min(values)), 4 * max(high, *values))
    axes.axhline(0, color="black", lw=0.8)
    axes.grid(alpha=0.3)


def _figure(
    panels: tuple[int, int], size: tuple[float, float], widths: Sequence[float] | None = None
) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=100)
    return figure, figure.subplots(*panels, width_ratios=widths)


def short_names(names: Sequence[str]) -> tuple[list[str], str]:
    """Split names into what differs and the module path that all of them share.

    Returns:
        The names without the shared path, and the shared path.
    """
    paths = [name.split(".") for name in names]
    shared = 0
    while all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return [".".join(path[shared:]) for path in paths], ".".join(paths[0][:shared])
