"""Plot of a pruning run: the sparsity over the steps, and the density of each layer at the end."""

from collections.abc import Sequence
from pathlib import Path

from slicefine_pl.analysis.plots import save_figure
from slicefine_pl.sparsity import LayerSparsity

BLUE, GRAY = "#0072B2", "#999999"  # distinguishable for color-blind readers
MAX_NAMES = 60  # with more layers, the bars have no names


def plot_pruning(
    folder: str | Path, history: Sequence[tuple[int, float]], steps: int, layers: Sequence[LayerSparsity]
) -> Path:
    """Write ``sparsity.png``.

    Args:
        folder: Folder of the file; created if necessary.
        history: Steps after which masks were made, and the sparsity reached then.
        steps: Optimizer steps of the run.
        layers: All pruned weights at the end.

    Returns:
        The file.
    """
    from matplotlib.figure import Figure

    named = len(layers) if len(layers) <= MAX_NAMES else 0
    figure = Figure(figsize=(11, max(3.6, 0.17 * named + 1.2)), layout="constrained")
    over_steps, by_layer = figure.subplots(1, 2, width_ratios=(1, 1.2))
    places, values = [0, *(step for step, _ in history), steps], [0.0, *(value for _, value in history)]
    over_steps.step(places, [*values, values[-1]], where="post", color=BLUE, linewidth=2)
    over_steps.set(xlabel="optimizer steps", ylabel="share of zero weights", ylim=(0, 1), xlim=(0, max(steps, 1)))
    over_steps.set_title(f"{values[-1]:.1%} of the pruned matrices' weights are zero", loc="left", fontsize=10)
    names = [each.name.removesuffix(".weight") for each in layers]
    by_layer.barh(range(len(layers)), [1 - each.sparsity for each in layers], color=BLUE, height=0.75)
    by_layer.axvline(1 - values[-1], color=GRAY, linestyle="--", linewidth=1)
    by_layer.set(xlabel="share of nonzero weights", xlim=(0, 1), ylim=(len(layers) - 0.5, -0.5))
    by_layer.set_yticks(range(len(layers)) if named else [], names if named else [], fontsize=7)
    by_layer.set_title(f"{len(layers)} matrices; dashed: all together", loc="left", fontsize=10)
    for axes in (over_steps, by_layer):
        axes.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, Path(folder) / "sparsity.png", dpi=110)
