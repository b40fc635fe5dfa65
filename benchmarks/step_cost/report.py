"""Print results of ``benchmarks.step_cost.run`` as Markdown: time, memory, and which thresholds are met.

python -m benchmarks.step_cost.report benchmarks/results/cost_minilm_r8.json ...
"""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness.results import Row, argument_parser, markdown_table, read_result, with_spread

BASELINE, COLUMN, LORA = "frozen baseline", "slice, column", "lora"


def table(result: Row) -> str:
    """Two tables, of time and of memory, with one line per method."""
    rows = result["rows"]
    time = markdown_table(
        [
            "method",
            "step, ms",
            "/ baseline (spread)",
            "/ LoRA",
            "forward",
            "backward",
            "update",
            "first, s",
            "move, ms",
        ],
        [[name, *_time_cells(row)] for name, row in rows.items()],
    )
    peaks = "sum of all" if rows[BASELINE]["allocator_mb"] is None else "peak"
    memory = markdown_table(
        ["method, MB", "saved", "/ baseline", peaks, "/ LoRA's", "RSS growth", "optimizer", "stored", "trained"],
        [[name, *_memory_cells(row, rows[LORA])] for name, row in rows.items()],
    )
    title = f"**{problem(result)}, R = {result['rank']}**"
    return "\n\n".join(filter(None, [title, time, memory, "\n".join(_remarks(result))]))


def _remarks(result: Row) -> Iterator[str]:
    """Methods that are left out, and slices in fewer layers than the other methods."""
    for name, reason in result["left_out"].items():
        yield f"Left out: {name}. {reason}"
    for name, row in result["rows"].items():
        if row["sliced"] not in (None, result["targets"]):
            yield f"{name}: in {row['sliced']} of {result['targets']} layers; the rest are narrower than R."


def problem(result: Row) -> str:
    """Network, batch and dtype."""
    [shape] = [value for name, value in result["batch"].items() if name in ("x", "input_ids")]
    return f"{result['network']}, batch {' x '.join(map(str, shape))}, {result['dtype']}"


def _time_cells(row: Row) -> list[str]:
    return [
        _ms(row["step_ms"]["median"]),
        with_spread(row["time_vs_baseline"], ".2f"),
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
        f"{row['saved_vs_baseline']:.3f}",
        f"{peak(row):.1f}",
        f"{peak(row) / peak(lora):.3f}",
        "" if row["rss_mb"] is None else f"{row['rss_mb']:.0f}",
        f"{row['optimizer_mb']:.2f}",
        f"{row['checkpoint_mb']:.2f}",
        f"{row['trained']:,}",
    ]


def peak(row: Row) -> float:
    """Peak memory in MB: the allocator's on a GPU, elsewhere the sum of all parts."""
    measured: float | None = row["allocator_mb"]
    return float(row["sum_mb"]) if measured is None else measured


def thresholds(result: Row) -> str:
    """Column slices against our thresholds; those relative to LoRA are what PaCA (arXiv:2503.01905) published."""
    lines = [
        [name, f"{value:.3f}", f"{'at least' if more else 'at most'} {wanted}", _verdict(value, wanted, more)]
        for name, value, wanted, more in _thresholds(result)
    ]
    return markdown_table(["column slices", "measured", "threshold", ""], lines)


def _verdict(value: float, wanted: float, more: bool) -> str:
    return "met" if (value >= wanted if more else value <= wanted) else "**missed**"


def _thresholds(result: Row) -> Iterator[tuple[str, float, float, bool]]:
    """Name, measured value, threshold, and whether more is better."""
    rows, slowest = result["rows"], 1.05 if result["width"] >= 1024 else 1.10
    for title, compiled, ending in (("", "", ""), ("compiled: ", "compiled_", ", compiled")):
        if COLUMN + ending not in rows:
            continue
        column, lora = rows[COLUMN + ending], rows[LORA + ending]
        saved = column["saved_mb"] / rows[BASELINE + ending]["saved_mb"] if ending else column["saved_vs_baseline"]
        yield f"{title}step time / baseline", column[f"time_vs_{compiled}baseline"]["median"], slowest, False
        yield f"{title}LoRA's step time / ours", 1 / column[f"time_vs_{compiled}lora"]["median"], 1.28, True
        yield f"{title}peak memory / LoRA's", peak(column) / peak(lora), 0.84, False
        yield f"{title}saved activations / baseline", saved, 1.02, False


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="JSON files")
    for result in map(read_result, parser.parse_args().results):
        print(table(result), "", thresholds(result), "", sep="\n")
        print("{device}, {processor}, torch {torch}, {date}, commit {commit}\n".format(**result["machine"]))


if __name__ == "__main__":
    main()
