"""The length of a run against the counted optimizer steps of real runs."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from slicefine_pl.run_length import required_run_length, run_length


class Stream(IterableDataset):
    """Ten examples without a length."""

    def __iter__(self):
        return iter(torch.ones(10, 2))


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        batch = batch["a"] if isinstance(batch, dict) else batch
        return self.net(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Ask(Callback):
    """Read the length when the optimizer is built, when training starts, and in every epoch."""

    def __init__(self):
        self.answers = []

    def on_fit_start(self, trainer, pl_module):
        self.answers.append(run_length(trainer))

    on_train_start = on_train_epoch_start = on_fit_start


def fit(data, *callbacks, ckpt_path=None, **settings) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(callbacks=list(callbacks), **(quiet | settings))
    trainer.fit(Module(), data, ckpt_path=ckpt_path)
    return trainer


SIZED, UNSIZED = DataLoader(torch.ones(10, 2), batch_size=2), DataLoader(Stream(), batch_size=2)


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        (SIZED, {"max_epochs": 3}),
        (SIZED, {"max_epochs": 3, "accumulate_grad_batches": 2}),
        (SIZED, {"max_epochs": 3, "max_steps": 7}),
        (SIZED, {"max_epochs": -1, "max_steps": 7}),
        (SIZED, {"max_epochs": 0}),
        (SIZED, {"max_steps": 0}),
        (SIZED, {"max_epochs": 2, "limit_train_batches": 0}),
        (SIZED, {"max_epochs": 2, "limit_train_batches": 0.5}),
        (SIZED, {"max_epochs": 2, "overfit_batches": 3}),
        (SIZED, {"max_epochs": 9, "fast_dev_run": 2}),
        (UNSIZED, {"max_epochs": 3, "limit_train_batches": 4}),
        (UNSIZED, {"max_epochs": -1, "max_steps": 7}),
        (UNSIZED, {"max_epochs": 5, "max_steps": 7}),
        (UNSIZED, {"max_epochs": 2, "overfit_batches": 3}),
        (CombinedLoader({"a": SIZED, "b": UNSIZED}, "max_size_cycle"), {"max_epochs": 2, "limit_train_batches": 3}),
    ],
)
@pytest.mark.filterwarnings("ignore")  # Lightning warns of such settings
def test_the_length_equals_the_steps_of_the_run(data, settings):
    ask = Ask()
    trainer = fit(data, ask, **settings)
    assert set(ask.answers) == {trainer.global_step}


@pytest.mark.filterwarnings("ignore:The total number of parameters:UserWarning")
def test_accumulation_that_changes_between_epochs_counts():
    """Lightning's own estimate is 20 here."""
    ask = Ask()
    trainer = fit(SIZED, GradientAccumulationScheduler({0: 1, 1: 2, 3: 5}), ask, max_epochs=4)
    assert trainer.global_step == 5 + 3 + 3 + 1
    assert set(ask.answers) == {trainer.global_step}


class Growing(Module):
    """Loaders of 1, 2, 3 ... batches, reloaded for each epoch."""

    def train_dataloader(self):
        return DataLoader(torch.ones(2 * (self.trainer.current_epoch + 1), 2), batch_size=2)


def test_reloaded_data_count_from_their_first_epoch():
    ask = Ask()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(callbacks=[ask], max_epochs=3, reload_dataloaders_every_n_epochs=1, **quiet)
    trainer.fit(Growing())
    assert ask.answers[-3:] == [3, 1 + 2 + 2, 1 + 2 + 3]
    assert trainer.global_step == 6


@pytest.mark.filterwarnings("ignore")  # warns that the loader does not resume
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6])
def test_a_resumed_run_knows_its_length(tmp_path, stop):
    """Three epochs of five batches make nine steps; saved in the middle and at the last batch of an epoch."""
    settings = {"max_epochs": 3, "accumulate_grad_batches": 2}
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False)
    fit(SIZED, saver, enable_checkpointing=True, **settings)
    ask = Ask()
    resumed = fit(SIZED, ask, ckpt_path=tmp_path / f"step={stop}.ckpt", **settings)
    assert resumed.global_step == 9
    assert set(ask.answers) == {9}


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (UNSIZED, {"max_epochs": 3}, "the training data have no length .* Set limit_train_batches to a number"),
        (CombinedLoader({"a": SIZED, "b": UNSIZED}, "max_size_cycle"), {"max_epochs": 3}, "the training data have no"),
        (SIZED, {"max_epochs": -1, "max_time": {"seconds": 1}}, "only max_time limits the run. Set max_epochs or max_"),
        (SIZED, {"max_time": {"seconds": 1}}, "only max_time limits the run"),
        (SIZED, {"max_epochs": -1}, "neither max_epochs nor max_steps limits the run"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_unknown_length_is_none_and_the_error_names_cause_and_remedy(data, settings, message):
    class Want(Callback):
        def on_fit_start(self, trainer, pl_module):
            assert run_length(trainer) is None
            required_run_length(trainer, ["warmup=0.1"], "set warmup=0")

    with pytest.raises(
        ValueError, match=f"warmup=0.1 depends on the number of optimizer steps.*{message}.*, or set warmup"
    ):
        fit(data, Want(), **settings)


def test_max_steps_of_several_optimizers_is_not_the_length():
    class Manual(Module):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return [super(Manual, self).configure_optimizers() for _ in range(2)]

    class Want(Callback):
        def on_fit_start(self, trainer, pl_module):
            required_run_length(trainer, ["start=0.25", "end=0.75"], "give steps")

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    with pytest.raises(ValueError, match=r"start=0\.25 and end=0\.75 depend on .*max_steps=4 counts the steps of 2"):
        Trainer(callbacks=[Want()], max_steps=4, **quiet).fit(Manual(), SIZED)
