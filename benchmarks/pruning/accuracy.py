"""What does pruning cost in accuracy, at equal steps? Dense, 50 %, 75 % and 2:4; from scratch and pretrained.

python -m benchmarks.pruning.accuracy --out runs.jsonl digits reviews

- ``digits`` trains the vision transformer of ``recipes/sparse.py`` from random weights, 24 epochs of 1,500 digits.
- ``reviews`` trains all weights of the pretrained MiniLM of ``recipes/text.py``, one epoch of film reviews at the
  recipe's rate for full fine-tuning.

Pruned runs follow the callback's cubic schedule from 25 to 75 % of the steps. They share all other settings with the
dense run; none was tuned for them. Every run appends a JSON line to the file, and a run in the file is not repeated.
"""

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything

from benchmarks.harness.lightning import QUIET
from benchmarks.harness.machine import ROOT
from benchmarks.harness.networks import MINILM
from benchmarks.harness.results import Row, RunLog, argument_parser, result_path
from slicefine_pl.callbacks import SparsityCallback
from slicefine_pl.data import ImageDataModule, TextDataModule
from slicefine_pl.modules import ImageClassifier, TextClassifier

VIT = str(ROOT / "recipes" / "configs" / "sparse" / "vit_64")
INTERVAL = 10  # steps between new masks; the runs are short
PATTERNS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "50%": {"sparsity": 0.5},
    "75%": {"sparsity": 0.75},
    "2:4": {"pattern": "2:4"},
}
Setup = tuple[LightningModule, LightningDataModule, int]  # module, data, epochs


def digits(seed: int) -> Setup:
    data = ImageDataModule(processor=VIT, min_area=0.7, flip=False, batch_size=50, seed=seed)
    module = ImageClassifier(
        VIT, label_names=data.label_names, lr=3.5e-3, decay="linear", warmup=0.1, weight_decay=0.05
    )
    return module, data, 24


def reviews(seed: int) -> Setup:
    data = TextDataModule(source="reviews", tokenizer=MINILM, batch_size=32, seed=seed)
    return TextClassifier(MINILM, label_names=["negative", "positive"], lr=1e-4), data, 1


SETUPS: dict[str, Callable[[int], Setup]] = {"digits": digits, "reviews": reviews}


def train(task: str, pattern: str, seed: int) -> Row:
    """One run; returns its scores, the share of zeros counted in the pruned weights, and its time."""
    seed_everything(seed, verbose=False)
    module, data, epochs = SETUPS[task](seed)
    settings = PATTERNS[pattern]
    pruning = None if settings is None else SparsityCallback(**settings, interval=INTERVAL)
    trainer = Trainer(**QUIET, max_epochs=epochs, callbacks=[] if pruning is None else [pruning])
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
    """Make the runs that the file lacks."""
    parser = argument_parser(__doc__)
    parser.add_argument("tasks", nargs="+", choices=SETUPS)
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=result_path, required=True)
    arguments = parser.parse_args()
    log = RunLog(arguments.out)
    for seed, task, pattern in itertools.product(arguments.seeds, arguments.tasks, arguments.patterns):
        log.get({"task": task, "pattern": pattern, "seed": seed}, partial(train, task, pattern, seed))


if __name__ == "__main__":
    main()
