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
    """Two tables, of time and of memory, one line a method."""
    rows = result["rows"]
    left_out = "\n".join(
        [*(f"Left out: {name}. {reason}" for name, reason in result["left_out"].items()), *_frozen(result)]
    )
    peaks = "peak" if rows["floor"]["allocator_mb"] is not None else "sum of all"
    time = _markdown(
        ["method", "step, ms", "/ floor (spread)", "/ LoRA", "forward", "backward", "update", "first, s", "move, ms"],
        [[name, *_time_cells(row)] for name, row in rows.items()],
    )
    memory = _markdown(
        ["method, MB", "saved", "/ floor", peaks, "/ LoRA's", "process grows", "optimizer", "stored", "trained"],
        [[name, *_memory_cells(row, rows["lora"])] for name, row in rows.items()],
    )
    title = f"**{problem(result)}, R = {result['rank']}**"
    return "\n\n".join(filter(None, [title, time, memory, left_out]))


def _frozen(result: dict[str, Any]) -> Iterator[str]:
    """Slices that have fewer layers than the other methods: those narrower than the rank."""
    for name, row in result["rows"].items():
        if row["sliced"] not in (None, result["targets"]):
            yield f"{name}: in {row['sliced']} of {result['targets']} layers; the rest are narrower than R."


def problem(result: dict[str, Any]) -> str:
    """What was trained, and on how much."""
    [shape] = [value for name, value in result["batch"].items() if name in ("x", "input_ids")]
    return f"{result['network']}, batch {' x '.join(map(str, shape))}, {result['dtype']}"


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    told = [f"| {' | '.join(cells)} |" for cells in (head, *lines)]
    return "\n".join([told[0], "|---" * len(head) + "|", *told[1:]])


def _time_cells(row: Row) -> list[str]:
    floor = row["time_vs_floor"]
    return [
        _ms(row["step_ms"]["median"]),
        f"{floor['median']:.2f} ({floor['p16']:.2f}-{floor['p84']:.2f})",
        f"{row['time_vs_lora']['median']:.2f}",
        *(_ms(row[f"{part}_ms"]["median"]) for part in ("forward", "backward", "update")),
        f"{row['startup_s']:.2f}",
        f"{row['move_ms']:.1f} ({row['move_share_at_interval_100']:.2%} of 100 steps)" if "move_ms" in row else "",
    ]


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _memory_cells(row: Row, lora: Row) -> list[str]:
    return [
        f"{row['saved_mb']:.1f}",
        f"{row['saved_vs_floor']:.3f}",
        f"{peak(row):.1f}",
        f"{peak(row) / peak(lora):.3f}",
        "" if row["resident_mb"] is None else f"{row['resident_mb']:.0f}",
        f"{row['optimizer_mb']:.2f}",
        f"{row['checkpoint_mb']:.2f}",
        f"{row['trained']:,}",
    ]


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
        yield "compiled: peak memory / compiled LoRA's", peak(compiled) / peak(rows["lora, compiled"]), 0.84, False
        yield (
            "compiled: saved / compiled floor",
            compiled["saved_mb"] / rows["floor, compiled"]["saved_mb"],
            1.02,
            False,
        )


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
