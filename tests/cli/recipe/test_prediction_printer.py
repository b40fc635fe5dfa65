"""What a command prints while it predicts."""

import contextlib
import io
import os

import pytest
import torch
from helpers import processes
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import default_collate

from slicefine_pl.cli.recipe.prediction_printer import PredictionPrinter, format_prediction
from slicefine_pl.data.batching import BatchPlan, PlannedLoader
from slicefine_pl.modules.classifier import counted_rows

MANY = 7


class Numbers(LightningDataModule):
    """Example n is the number n, and its name is "n"."""

    predict_names = [str(number) for number in range(MANY)]

    def predict_dataloader(self):
        """Two numbers per batch and process."""
        rank, world_size = int(os.environ.get("RANK", 0)), self.trainer.world_size
        plan = BatchPlan([1] * MANY, 2, shuffle=False, rank=rank, world_size=world_size)
        return PlannedLoader([{"x": torch.tensor(float(n))} for n in range(MANY)], plan, default_collate)


class Doubled(LightningModule):
    """Predicts twice the number."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)  # a network without parameters is refused by DDP

    def predict_step(self, batch, batch_idx):
        return counted_rows(batch, 2 * batch["x"])


def printed(count):
    trainer = Trainer(
        callbacks=[PredictionPrinter()], strategy="ddp" if count > 1 else "auto", devices=count, accelerator="cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()) as out:
        trainer.predict(Doubled(), Numbers(), return_predictions=False)
    return [line.split("\t") for line in out.getvalue().splitlines()]


def test_names_of_classes_that_would_break_the_line_are_quoted():
    assert format_prediction([0.25, 0.75], ["a b", "a\tb\nc"]) == '"a\\tb\\nc" 0.7500  a b 0.2500'


def test_examples_without_names_are_numbered(monkeypatch):
    monkeypatch.delattr(Numbers, "predict_names")
    assert printed(1) == [[f"{2 * number:.4f}", str(number)] for number in range(MANY)]


@pytest.mark.distributed
def test_each_example_is_printed_once_in_order_whatever_the_number_of_processes():
    first, *others = processes.run(printed, 3, 3)
    assert first == [[f"{2 * number:.4f}", str(number)] for number in range(MANY)]
    assert others == [[], []]
