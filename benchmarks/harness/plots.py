"""Labels, colors and frames that the pictures of all benchmarks share."""

from typing import Literal

from matplotlib.axes import Axes

LABELS = {
    "frozen baseline": "frozen baseline",
    "slice, column": "SliceFine, columns",
    "slice, row": "SliceFine, rows",
    "slice, alternate": "SliceFine, alternating",
    "slice, directions": "SliceFine, directions",
    "slice, moving directions": "SliceFine, moving directions",
    "slice, static": "static columns (PaCA's setting)",
    "lora": "LoRA",
    "lora, q and v": "LoRA, queries and values",
    "dora": "DoRA",
    "vera": "VeRA",
    "miss": "MiSS",
    "bitfit": "BitFit",
    "masked gradients": "masked gradients",
    "full": "full fine-tuning",
}
SLICES, OTHERS = "#d1495b", "#5c677d"
DPI = 110


def color_of(method: str) -> str:
    """Red for slices, gray for other methods."""
    return SLICES if method.startswith("slice") else OTHERS


def open_frame(axes: Axes, grid: Literal["x", "both"] | None = None) -> None:
    """Remove the frame's top and right; draw a light grid along ``grid``."""
    axes.spines[["top", "right"]].set_visible(False)
    if grid is not None:
        axes.grid(axis=grid, alpha=0.25)
