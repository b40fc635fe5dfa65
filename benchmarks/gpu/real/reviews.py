"""MiniLM on film reviews: the accuracies of three seeds, compared with those of the same runs on a CPU.

Weights, texts and the accuracies on a CPU come from the folder that ``python -m benchmarks.gpu.real.pack`` writes.
"""

import json
import logging
import statistics
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything

from benchmarks.gpu.checks import NotHereError
from benchmarks.harness.lightning import QUIET
from benchmarks.harness.results import Row
from slicefine_pl import SliceFineCallback
from slicefine_pl.data import TextDataModule
from slicefine_pl.modules import TextClassifier

PACKED = Path(__file__).parent / "packed"  # git ignores it
TEXTS, REFERENCE = "reviews.csv", "cpu.json"
SEEDS = (0, 1, 2)
RANK = 32
STEPS = {"cuda": 100, "cpu": 2}
MOST_APART = 0.01  # mean accuracies; rounding differs, and with it which of some 2,100 texts are classified correctly


def reviews(device: str) -> Row:
    """Train slices for 100 steps with each seed; on a CPU, only see that training works."""
    if not (PACKED / REFERENCE).is_file():  # written last
        raise NotHereError("The weights are not here; python -m benchmarks.gpu.real.pack writes them, with a network.")
    if device == "cpu":
        return {"accuracy": [train(0, device, steps=STEPS[device], tested=2)]}
    reference = json.loads((PACKED / REFERENCE).read_text())
    made = reference["machine"]["commit"]
    accuracies = [train(seed, device, STEPS[device]) for seed in SEEDS]
    apart = abs(statistics.mean(accuracies) - statistics.mean(reference["accuracy"]))
    assert apart <= MOST_APART, (
        f"The accuracies {accuracies} differ from those on a CPU, {reference['accuracy']}, by {apart:.4f} in the mean; "
        f"at most {MOST_APART} is expected from rounding. Those of the CPU are of commit {made}: if training has "
        "changed since, run python -m benchmarks.gpu.real.pack again."
    )
    return {"accuracy": accuracies, "accuracy_cpu": reference["accuracy"], "apart": round(apart, 4), "commit_cpu": made}


def train(seed: int, device: str, steps: int, tested: int | None = None) -> float:
    """Test accuracy after training.

    Args:
        seed: Of the new head, the order of the batches and the positions of the slices.
        device: ``"cuda"`` or ``"cpu"``.
        steps: Training steps.
        tested: Batches that are tested; ``None`` means all.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # not the devices that were found, nor tips
    seed_everything(seed, verbose=False)
    data = TextDataModule(source=str(PACKED / TEXTS), tokenizer=str(PACKED), batch_size=32, seed=seed)
    module = TextClassifier(
        str(PACKED), label_names=data.label_names, lr=1e-4, head_lr=2e-3
    ).float()  # stored in half precision
    settings: dict[str, Any] = {**QUIET, "accelerator": "gpu" if device == "cuda" else "cpu", "devices": 1}
    settings |= {} if tested is None else {"limit_test_batches": tested}
    slices = SliceFineCallback(rank=RANK, interval=20, seed=seed)
    trainer = Trainer(**settings, max_steps=steps, max_epochs=1, callbacks=[slices])
    trainer.fit(module, data)
    [scores] = trainer.test(module, data, verbose=False)
    return round(float(scores["test/accuracy"]), 4)
