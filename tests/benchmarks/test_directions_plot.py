"""The picture of columns and directions: which runs it takes, and that it draws them."""

import json

from benchmarks.accuracy.directions_plot import by_rank, lora_by_rank, plot
from benchmarks.accuracy.rates_report import read_runs


def row(method, lr, seed, loss):
    return {"task": "tweets", "method": method, "lr": lr, "seed": seed, "val_loss": loss, "val": 0.9, "test": 0.9}


def written(path, *rows):
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def test_only_slices_that_stay_and_scale_their_rate_are_compared(tmp_path):
    runs = read_runs(written(
        tmp_path / "runs.jsonl",
        row("column r=8 place=random scaled", 1e-4, 0, 0.3),
        row("column r=8 place=random scaled", 1e-4, 1, 0.5),
        row("column r=8 place=random scaled", 2e-4, 0, 0.1),  # another rate
        row("column r=32 place=random", 1e-4, 0, 0.1),  # without scaling
        row("column r=32 every=10 scaled", 1e-4, 0, 0.1),  # moves
        row("direction r=2 gradient", 1e-4, 0, 0.4),
        row("direction r=8 pca", 1e-4, 0, 0.1),
        row("direction r=8 gradient every=10", 1e-4, 0, 0.1),
    ))  # fmt: skip
    assert by_rank(runs, "tweets", 1e-4, "standard") == {8: [0.3, 0.5]}
    assert by_rank(runs, "tweets", 1e-4, "gradient") == {2: [0.4]}
    searched = read_runs(written(tmp_path / "full.jsonl", row("full", 1e-4, 0, 0.2)))
    lora = read_runs(written(
        tmp_path / "lora.jsonl",
        row("lora r=4", 1e-3, 0, 0.1),  # at the rate that was not chosen
        row("lora r=4", 2e-3, 0, 0.2),
        row("lora r=4", 2e-3, 1, 0.4),
        row("lora r=16 on=qv", 1e-3, 0, 0.1),  # fewer layers
    ))  # fmt: skip
    assert lora_by_rank(lora, "tweets") == {8: [0.2, 0.4]}
    plot(runs, lora, searched, {"tweets": 1e-4}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
