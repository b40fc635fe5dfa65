"""What does pruning cost in accuracy, at equal steps?  Dense, 50 %, 75 % and 2:4; from scratch and pretrained.

python benchmarks/pruned_accuracy.py --out benchmarks/results/pruned_accuracy.jsonl digits reviews

``digits`` trains the vision transformer of ``recipes/sparse.py`` from random weights, 24 epochs of the 1,500 digits;
``reviews`` trains all weights of the pretrained MiniLM of ``recipes/text.py``, one epoch of the film reviews at the
recipe's rate for full fine-tuning.  Pruned runs follow the callback's cubic schedule, from 25 to 75 % of the steps, and
have all other settings of the dense run: none was tuned for it.  A line of JSON a run is added to the file, and a run
that stands there already is not repeated.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, seed_everything
from tasks import MINILM, quiet_trainer

from slicefine_pl.callbacks import SparsityCallback
from slicefine_pl.data import ImageDataModule, TextDataModule
from slicefine_pl.modules import ImageClassifier, TextClassifier

VIT = str(Path(__file__).parents[1] / "recipes" / "configs" / "sparse" / "vit_64")
INTERVAL = 10  # steps between new masks: the runs are short
PATTERNS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "50%": {"sparsity": 0.5},
    "75%": {"sparsity": 0.75},
    "2:4": {"pattern": "2:4"},
}


def digits(seed: int) -> tuple[LightningModule, LightningDataModule, int]:
    """Module, data and epochs of the run from scratch."""
    data = ImageDataModule(processor=VIT, min_area=0.7, flip=False, batch_size=50, seed=seed)
    module = ImageClassifier(
        VIT, label_names=data.label_names, lr=3.5e-3, decay="linear", warmup=0.1, weight_decay=0.05
    )
    return module, data, 24


def reviews(seed: int) -> tuple[LightningModule, LightningDataModule, int]:
    """Module, data and epochs of the pretrained run."""
    data = TextDataModule(source="reviews", tokenizer=MINILM, batch_size=32, seed=seed)
    return TextClassifier(MINILM, label_names=["negative", "positive"], lr=1e-4), data, 1


TASKS: dict[str, Callable[[int], tuple[LightningModule, LightningDataModule, int]]] = {
    "digits": digits,
    "reviews": reviews,
}


def train(task: str, pattern: str, seed: int) -> dict[str, Any]:
    """One run; returns its scores, its share of zeros as counted in the weights, and its time."""
    seed_everything(seed, verbose=False)
    module, data, epochs = TASKS[task](seed)
    settings = PATTERNS[pattern]
    pruning = None if settings is None else SparsityCallback(**settings, interval=INTERVAL)
    trainer = quiet_trainer(epochs, [] if pruning is None else [pruning])
    start = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - start
    [val] = trainer.validate(module, data, verbose=False)
    [test] = trainer.test(module, data, verbose=False)
    pruned = [] if pruning is None else [each.parameter for each in pruning.masks.prunable.values()]
    zeros = sum(int((weight == 0).sum()) for weight in pruned)
    return {
        "steps": trainer.global_step,
        "val": val["val/accuracy"],
        "val_loss": val["val/loss"],
        "test": test["test/accuracy"],
        "test_loss": test["test/loss"],
        "zeros": zeros,
        "sparsity": round(zeros / max(1, sum(weight.numel() for weight in pruned)), 4),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    done = {(row["task"], row["pattern"], row["seed"]) for row in map(json.loads, lines)}
    runs = [(t, p, s) for s in arguments.seeds for t in arguments.tasks for p in arguments.patterns]
    for task, pattern, seed in (run for run in runs if run not in done):
        row = {"task": task, "pattern": pattern, "seed": seed, **train(task, pattern, seed)}
        print(row, flush=True)
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
