"""While slices are open, Lightning's table, ours and the network agree on the number of parameters."""

import logging

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, RichModelSummary
from lightning.pytorch.utilities.model_summary import summarize
from torch import nn

from slicefine_pl import SliceFineCallback

OWN = {"trunk": 6 * 8 + 8 + 8 * 8 + 8, "head": 8 * 2 + 2, "": 8 * 8}
TOTAL = sum(OWN.values())


class Module(LightningModule):
    """A trunk, a head, and a parameter of the module itself."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8))
        self.matrix = nn.Parameter(torch.randn(8, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.trunk(x) @ self.matrix)

    def training_step(self, batch, batch_idx):
        return self(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(8, 6), batch_size=4)


class Look(Callback):
    """Count parameters as Lightning does."""

    def on_train_start(self, trainer, pl_module):
        tables = [summarize(pl_module, max_depth=depth) for depth in (1, -1)]
        self.totals = [(table.total_parameters, table.trainable_parameters) for table in tables]
        self.flops = tables[0].total_flops
        self.rows = [dict(zip(table.layer_names, table.param_nums, strict=True)) for table in tables]
        self.counts = next(each for each in trainer.callbacks if isinstance(each, SliceFineCallback)).opened().counts()


def fit(module: Module, *callbacks: Callback, **settings) -> Look:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    look = Look()
    Trainer(max_epochs=1, callbacks=[*callbacks, look], **quiet, **settings).fit(module)
    return look


@pytest.mark.parametrize("axis", ["column", "row", "alternate"])
def test_slices_count_as_entries_of_their_weights(axis):
    """Alternating slices are padded; the padding does not count as trained."""
    slicing = SliceFineCallback(rank=2, axis=axis, interval=100, targets=["trunk", "matrix"], also_train="head")
    look = fit(Module(), slicing, enable_model_summary=False)
    lines = 2 * ((8 + 8 + 8) if axis != "row" else (6 + 8 + 8))
    assert look.totals == [(TOTAL, lines + OWN["head"])] * 2
    shallow, deep = look.rows
    assert (shallow["trunk"], shallow["head"]) == (OWN["trunk"], OWN["head"])
    assert (deep["trunk.0"], deep["trunk.0.slicefine"]) == (6 * 8 + 8, 0)
    assert (look.counts.total, look.counts.trained) == (TOTAL, lines + OWN["head"])


def test_a_closed_module_has_the_usual_counts():
    module = Module()
    fit(module, SliceFineCallback(rank=2, targets="trunk", also_train="head"), enable_model_summary=False)
    table = summarize(module)
    assert table.total_parameters == table.trainable_parameters == TOTAL
    assert table.param_nums == [OWN["trunk"], OWN["head"]]


@pytest.mark.parametrize("given", [None, ModelSummary(max_depth=-1), RichModelSummary(max_depth=-1)])
def test_the_table_has_no_flops_without_an_example_input(given, caplog, capsys):
    callbacks = [SliceFineCallback(rank=2, targets="trunk", also_train="head"), *filter(None, [given])]
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(Module(), *callbacks)
    said = caplog.text + capsys.readouterr().out
    assert "flops" not in said.lower()
    assert f"{2 * (8 + 8) + OWN['head']:,} of {TOTAL:,} parameters" in said
    assert ("trunk.0" in said) == (given is not None)


def test_flops_of_an_example_input_are_those_of_the_dense_network(capsys):
    module = Module()
    module.example_input_array = torch.randn(3, 6)
    dense = summarize(module).total_flops
    look = fit(module, SliceFineCallback(rank=2, targets=["trunk", "matrix"], also_train="head"))
    assert look.flops == dense == 2 * 3 * (6 * 8 + 8 * 8 + 8 * 8 + 8 * 2)
    assert "Total FLOPs" in capsys.readouterr().out  # Lightning's own table
