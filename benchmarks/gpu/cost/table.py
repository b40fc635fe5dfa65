"""The figures of a comparison as a table for the terminal, with the goals that were met and missed."""

from benchmarks.harness.results import Row
from slicefine_pl.text_table import text_table

HEADINGS = (
    "method", "step, ms", "/ baseline", "(spread)", "/ LoRA", "per s", "peak, MB", "/ baseline", "/ LoRA",
    "above weights", "write", "move",
)  # fmt: skip


def table(figures: Row) -> str:
    """One line per candidate, the candidates that are missing, and one line per goal."""
    shape: list[int] = max(figures["batch"].values(), key=len)
    size = " x ".join(map(str, shape))
    title = f"batch {size}, weights {figures['weights_mb']:,.1f} MB, median of {figures['rounds']} rounds"
    cells = [_cells(name, row) for name, row in figures["rows"].items()]
    missing = [f"{name} is left out. {reason}" for name, reason in figures["left_out"].items()]
    goals = [_goal(goal) for goal in figures["goals"]]
    return "\n".join([text_table(HEADINGS, [cells], numbers_from=1, title=title), *missing, *goals])


def _cells(name: str, row: Row) -> list[str]:
    baseline = row["time_vs_baseline"]
    return [
        name,
        f"{row['step_ms']['median']:.2f}",
        f"{baseline['median']:.3f}",
        f"{baseline['p16']:.3f}-{baseline['p84']:.3f}",
        f"{row['time_vs_lora']['median']:.3f}" if "time_vs_lora" in row else "",
        f"{row['per_second']:,.0f}",
        f"{row['peak_mb']:,.0f}",
        f"{row['peak_vs_baseline']:.3f}",
        f"{row['peak_vs_lora']:.3f}" if "peak_vs_lora" in row else "",
        f"{row['above_weights_mb']:,.0f}",
        f"{row['write_share']:.2%}" if "write_share" in row else "",
        f"{row['move_share_at_interval_100']:.2%}" if "move_share_at_interval_100" in row else "",
    ]


def _goal(goal: Row) -> str:
    verdict = "met" if goal["met"] else "MISSED"
    return f"goal {verdict}: {goal['candidate']}, {goal['figure']} {goal['measured']:.4f}, at most {goal['at_most']:g}"
