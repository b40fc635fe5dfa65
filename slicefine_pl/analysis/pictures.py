"""Pictures of the measurements: spectra, task energy, kernels, slice gradients.

Answers one question: how do the numbers look?  Matplotlib is imported when a picture is drawn, never before.

Source:  colours of Okabe and Ito, which readers who confuse red and green can tell apart.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from slicefine_pl.analysis.kernel import spectrum
from slicefine_pl.analysis.spectra import Balance
from slicefine_pl.analysis.task_energy import explained
from slicefine_pl.analysis.winners import Winners
from slicefine_pl.slicing.positions import Line

BLUE, ORANGE, GREEN, GREY, RED = "#0072B2", "#E69F00", "#009E73", "0.55", "#D55E00"
COLOURS: dict[Line, str] = {"row": BLUE, "column": ORANGE}
MARKS: dict[Line, str] = {"row": "o", "column": "s"}
SHIFTS: dict[Line, float] = {"row": -0.16, "column": 0.16}  # of the two within a control's place


def png(figure: Any) -> bytes:
    """A figure as the bytes of a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(buffer)
    return buffer.getvalue()


def spectra_picture(balances: Mapping[str, Mapping[Line, Mapping[str, Balance]]]) -> Any:
    """Both spreads of every matrix, control by control, and the decay of one matrix's groups.

    Args:
        balances: Control, then line, then name of the matrix; the first control is the network itself.
    """
    figure, axes = _figure(3, (15, 4.6))
    spreads = {"spread_of_means": "spread of the groups' mean eigenvalue", "spread_of_decay": "spread of the decay"}
    for panel, (measure, words) in zip(axes, spreads.items(), strict=False):
        for place, by_line in enumerate(balances.values()):
            for line, shift in SHIFTS.items():
                values = [getattr(each, measure) for each in by_line.get(line, {}).values()]
                heights = place + shift + np.linspace(-0.1, 0.1, len(values))
                label = f"{line}s of one matrix" if place == 0 else None
                panel.plot(values, heights, MARKS[line], color=COLOURS[line], ms=3, alpha=0.6, label=label)
                if values:
                    panel.plot([np.median(values)] * 2, [place + shift - 0.15, place + shift + 0.15], color="black")
        panel.set(xscale="log", yticks=range(len(balances)), yticklabels=list(balances) if panel is axes[0] else [])
        panel.set(xlabel=f"{words}\n(0: all groups alike)", title=f"{words[0].upper()}{words[1:]}")
        panel.invert_yaxis()
        panel.grid(axis="x", alpha=0.3)
    axes[0].legend(fontsize=8, loc="lower left")
    _decay(axes[2], balances)
    figure.suptitle("Spectral balance; black bars are medians over the matrices", fontsize=12)
    return figure


def _decay(axes: Any, balances: Mapping[str, Mapping[Line, Mapping[str, Balance]]]) -> None:
    """The groups' normalised eigenvalues of the matrix whose rows are spread as the median one's."""
    own = next(iter(balances.values()))["row"]
    name = sorted(own, key=lambda each: own[each].spread_of_decay)[len(own) // 2]
    for control, colour in (("Gaussian", GREY), (next(iter(balances)), BLUE)):
        for number, curve in enumerate(balances[control]["row"][name].decay):
            label = f"{control}, one line a group" if number == 0 else None
            axes.plot(np.arange(1, len(curve) + 1), curve, color=colour, lw=1, alpha=0.8, label=label)
    axes.set(yscale="log", xlabel="number of the eigenvalue", ylabel="eigenvalue over their sum")
    axes.set_title(f"Decay of the row groups of\n{name}", fontsize=10)
    floor = min(float(balances[each]["row"][name].decay.min()) for each in ("Gaussian", next(iter(balances))))
    axes.set_ylim(bottom=max(floor / 2, 1e-6))
    axes.legend(fontsize=8)


def energy_picture(
    layers: Sequence[tuple[str, Tensor]], others: Sequence[tuple[str, Tensor]], rank: int, share: float
) -> Any:
    """Explained variance of every layer's inputs, and how many directions hold the share τ.

    Args:
        layers: Name and squared singular values of each layer's inputs, in the order of the network.
        others: The same without pretraining.
        rank: Of the slices.
        share: τ.
    """
    from matplotlib import colormaps

    figure, (left, right) = _figure(2, (13, 4.8), widths=(1, 1.25))
    curves = [explained(energies).numpy() for _, energies in layers]
    for _, energies in others:
        curve = explained(energies).numpy()
        left.plot(np.arange(1, len(curve) + 1), curve, color="0.8", lw=1)
    for number, curve in enumerate(curves):
        depth = colormaps["viridis"](number / max(1, len(curves) - 1) * 0.9)
        left.plot(np.arange(1, len(curve) + 1), curve, color=depth, lw=1.2)
    left.axvline(rank, color=RED, ls="--", label=f"rank {rank} of the slices")
    left.axhline(share, color="black", ls=":", label=f"τ = {share:g}")
    left.plot([], [], color=colormaps["viridis"](0.0), label="first layer")
    left.plot([], [], color=colormaps["viridis"](0.9), label="last layer")
    left.plot([], [], color="0.8", label="without pretraining")
    left.set(xscale="log", ylim=(0, 1.02), xlabel="directions k", ylabel="share of the variance, CEV(k)")
    left.set_title("Variance of each layer's inputs in k directions")
    left.legend(fontsize=8, loc="upper left")
    for found, colour, mark, words in ((layers, BLUE, "o", "this network"), (others, GREY, "x", "without pretraining")):
        counts = [int((explained(energies) < share).sum()) + 1 for _, energies in found]
        right.plot(range(len(found)), counts, mark, color=colour, ms=6, label=words)
    widths = [len(energies) for _, energies in layers]
    right.plot(range(len(layers)), widths, "_", color="black", ms=9, label="inputs of the layer")
    right.axhline(rank, color=RED, ls="--", label=f"rank {rank} of the slices")
    right.set(yscale="log", ylabel=f"directions that hold {share:.0%} of the variance")
    right.set_title(f"k_task({share:g}) by layer, first to last")
    right.set_xticks(range(len(layers)), [_short(name) for name, _ in layers], rotation=90, fontsize=6)
    right.grid(axis="y", alpha=0.3)
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def kernel_picture(kernels: Mapping[str, Tensor]) -> Any:
    """Each kernel over its trace, and its eigenvalues.

    Args:
        kernels: By what they are of, in words; shapes ``(M, M)``.
    """
    figure, axes = _figure(len(kernels) + 1, (3.2 * len(kernels) + 4.6, 3.9), widths=(*[1] * len(kernels), 1.4))
    scaled = {words: (kernel / kernel.diagonal().mean()).numpy() for words, kernel in kernels.items()}
    most = max(np.abs(each).max() for each in scaled.values())
    image = None
    for panel, (words, values) in zip(axes, scaled.items(), strict=False):
        image = panel.imshow(values, cmap="PuOr_r", vmin=-most, vmax=most, interpolation="nearest")
        panel.set(xticks=[], yticks=[], xlabel="outputs of the samples")
        panel.set_title(words, fontsize=10)
    figure.colorbar(image, ax=list(axes[: len(kernels)]), shrink=0.75, label="K over its mean diagonal")
    for (words, kernel), colour, mark in zip(kernels.items(), (BLUE, ORANGE, GREY, GREEN), "osxd", strict=False):
        eigenvalues = spectrum(kernel).eigenvalues
        shares = (eigenvalues / eigenvalues.sum()).numpy()
        axes[-1].plot(np.arange(1, len(shares) + 1), shares, mark + "-", color=colour, ms=3, lw=1, label=words)
    axes[-1].set(yscale="log", ylim=(1e-7, 2), xlabel="number of the eigenvalue", ylabel="eigenvalue over their sum")
    axes[-1].set_title("Spectra of the kernels", fontsize=10)
    axes[-1].legend(fontsize=7)
    return figure


def winners_picture(found: Winners, control: Winners | None) -> Any:
    """Measured against predicted decrease, on both sets of examples, and energy beside the share of parameters."""
    figure, axes = _figure(3, (15, 4.6))
    for panel, measured, predicted, words in (
        (axes[0], "decrease", "predicted", "the examples of the gradient"),
        (axes[1], "held_out", "predicted", "held-out examples"),
    ):
        _steps(panel, found, measured, predicted)
        panel.set_title(f"One step, loss on {words}", fontsize=11)
    axes[0].legend(fontsize=8, loc="upper left")
    for winners, colour, mark, words in ((found, BLUE, "o", "this network"), (control, GREY, "x", "no pretraining")):
        if winners is not None:
            ratios = sorted(step.energy / step.parameters for step in winners.slices)
            ranks = (np.arange(len(ratios)) + 0.5) / len(ratios)
            axes[2].plot(ratios, ranks, mark + "-", color=colour, ms=4, lw=1, label=words)
    axes[2].axvline(1, color="black", ls=":", label="its share of the parameters")
    axes[2].set(xscale="log", ylim=(0, 1), ylabel="share of the candidates below")
    axes[2].set_xlabel("gradient energy of a slice over its share of the parameters")
    axes[2].set_title("How much of the gradient a slice holds", fontsize=11)
    axes[2].legend(fontsize=8, loc="upper left")
    return figure


def _steps(axes: Any, found: Winners, measured: str, predicted: str) -> None:
    slices = {line: [step for step in found.slices if step.line == line] for line in COLOURS}
    kinds = [(slices[line], COLOURS[line], MARKS[line], f"one slice of {line}s") for line in COLOURS]
    kinds += [(found.layers, GREEN, "D", "one whole layer"), ([found.together], RED, "P", "those slices together")]
    kinds += [([found.everything], "black", "*", "all layers, dense")]
    expected = [getattr(step, predicted) for steps, *_ in kinds for step in steps]
    low, high = min(expected), max(expected)
    axes.plot([low, high], [low, high], color=GREY, lw=1, ls="--", label="first order: lr · ||g||²", zorder=0)
    for steps, colour, mark, words in kinds:
        size = 12 if len(steps) == 1 else 5
        x, y = ([getattr(step, each) for step in steps] for each in (predicted, measured))
        axes.plot(x, y, mark, color=colour, ms=size, alpha=0.75, ls="none", label=words)
    axes.set(xscale="log", xlabel="predicted decrease of the loss, lr · ||g||²", ylabel="measured decrease of the loss")
    axes.set_yscale("symlog", linthresh=low)
    axes.axhline(0, color="black", lw=0.8)
    axes.grid(alpha=0.3)


def _figure(panels: int, size: tuple[float, float], widths: Sequence[float] | None = None) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=100)
    return figure, figure.subplots(1, panels, width_ratios=widths)


def _short(name: str) -> str:
    """The end of a layer's name, which tells it from others."""
    return ".".join(name.split(".")[-4:])
