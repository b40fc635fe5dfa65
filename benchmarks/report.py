"""A result of ``train_step.py`` in Markdown: its table, and which of our bars it meets.

python benchmarks/report.py benchmarks/results/train_step_minilm_r8.json ...
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLUMN = "slice, column"
Row = dict[str, Any]


def table(result: dict[str, Any]) -> str:
    """One line a method: time, then memory."""
    head = (
        "| method | step, ms | step / floor | step / LoRA | forward · backward · update, ms | first step, s | saved, MB"
        " | saved / floor | peak, MB | resident, MB | optimizer, MB | stored, MB | trained |"
    )
    lines = [f"**{_question(result)}**", "", head, "|---" * 13 + "|"]
    lines += [_line(name, row) for name, row in result["rows"].items()]
    moves = [
        f"{name} {row['move_ms']:.2f} ms, {row['move_share_at_interval_100']:.3%} of the time at interval 100"
        for name, row in result["rows"].items()
        if "move_ms" in row
    ]
    left_out = [f"Left out: {name}. {reason}" for name, reason in result["left_out"].items()]
    return "\n\n".join(["\n".join(lines), "A move of all slices takes: " + "; ".join(moves) + ".", *left_out])


def _question(result: dict[str, Any]) -> str:
    [shape] = [value for name, value in result["batch"].items() if name in ("x", "input_ids")]
    return f"{result['network']}, R = {result['rank']}, {' x '.join(map(str, shape))}, {result['dtype']}"


def _line(name: str, row: Row) -> str:
    floor, parts = row["time_vs_floor"], (row[f"{part}_ms"]["median"] for part in ("forward", "backward", "update"))
    cells = [
        name,
        f"{row['step_ms']['median']:.0f}",
        f"{floor['median']:.2f} ({floor['p16']:.2f}-{floor['p84']:.2f})",
        f"{row['time_vs_lora']['median']:.2f}",
        " · ".join(f"{part:.0f}" for part in parts),
        f"{row['startup_s']:.2f}",
        f"{row['saved_mb']:.1f}",
        f"{row['saved_vs_floor']:.3f}",
        f"{peak(row):.1f}",
        "-" if row["resident_mb"] is None else f"{row['resident_mb']:.0f}",
        f"{row['optimizer_mb']:.2f}",
        f"{row['checkpoint_mb']:.2f}",
        f"{row['trained']:,}",
    ]
    return f"| {' | '.join(cells)} |"


def peak(row: Row) -> float:
    """Megabytes at most: the allocator's on a GPU, else the sum of what is kept."""
    measured: float | None = row["allocator_mb"]
    return float(row["sum_mb"]) if measured is None else measured


def bars(result: dict[str, Any]) -> str:
    """What we hold ourselves to, a line each; the gains over LoRA are those that PaCA (arXiv:2503.01905) published."""
    lines = [
        f"| {what} | {value:.3f} | {'at least' if more else 'at most'} {bar} | {_verdict(value, bar, more)} |"
        for what, value, bar, more in _bars(result)
    ]
    return "\n".join(["| bar, column slices | measured | wanted | |", "|---|---|---|---|", *lines])


def _verdict(value: float, bar: float, more: bool) -> str:
    return "met" if (value >= bar if more else value <= bar) else "**missed**"


def _bars(result: dict[str, Any]) -> Iterator[tuple[str, float, float, bool]]:
    """What, the value, the bar, and whether more is better."""
    rows, bar = result["rows"], 1.05 if result["width"] >= 1024 else 1.10
    column, lora = rows[COLUMN], rows["lora"]
    yield "step time / floor", column["time_vs_floor"]["median"], bar, False
    yield "LoRA's step time / ours", 1 / column["time_vs_lora"]["median"], 1.28, True
    yield "peak memory / LoRA's", peak(column) / peak(lora), 0.84, False
    yield "saved activations / floor", column["saved_vs_floor"], 1.02, False
    compiled = rows.get(f"{COLUMN}, compiled")
    if compiled is not None:
        yield "compiled: step time / compiled floor", compiled["time_vs_compiled_floor"]["median"], bar, False
        yield "compiled: compiled LoRA's step time / ours", 1 / compiled["time_vs_compiled_lora"]["median"], 1.28, True


def main() -> None:
    for source in map(Path, sys.argv[1:]):
        result = json.loads(source.read_text())
        told = result["machine"]
        print(table(result), "", bars(result), "", sep="\n")
        print(
            f"{told['device']}, {told['processor']}, torch {told['torch']}, {told['date']}, commit {told['commit']}\n"
        )


if __name__ == "__main__":
    main()
