"""Learning rates of runs whose length is unknown, or changes during the run."""

import math

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, GradientAccumulationScheduler, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from slicefine_pl.modules.fine_tuning import FineTuningModule


class Module(FineTuningModule):
    """Notes the factor on the peak rate at every step."""

    def __init__(self, lr=0.01, head_lr=None, warmup=0.0, decay="linear", sizes=(16,)):
        super().__init__(lr=lr, head_lr=head_lr, weight_decay=0.0, warmup=warmup, decay=decay)
        self.body, self.last = nn.Linear(2, 3), nn.Linear(3, 1)
        self.batch_size, self.sizes = 2, sizes
        self.rates = []

    def head(self):
        yield from self.last.parameters()

    def write_files(self, folder):
        raise NotImplementedError

    def training_step(self, batch, batch_idx):
        return self.last(self.body(batch)).square().mean()

    def on_train_batch_start(self, batch, batch_idx):
        self.rates.append([group["lr"] for group in self.optimizers().param_groups])

    def train_dataloader(self):
        examples = self.sizes[min(self.trainer.current_epoch, len(self.sizes) - 1)]
        return DataLoader(torch.ones(examples, 2), batch_size=self.batch_size)


class Blank(Module):
    """Its backbone has no pretrained weights."""

    def __init__(self):
        super().__init__()
        self.backbone, self.has_random_weights = "blank", True

    def predict_step(self, batch, batch_idx):
        return batch

    def test_step(self, batch, batch_idx):
        pass

    validation_step = test_step


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.ones(8, 2))


def trainer(*callbacks, **settings):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 1}
    return Trainer(callbacks=list(callbacks), **(quiet | settings))


def linear(steps):
    return [1 - step / steps for step in range(steps)]


def assert_rates(module, factors, lr=0.01):
    wanted = torch.tensor([[lr * factor, lr * factor] for factor in factors])
    torch.testing.assert_close(torch.tensor(module.rates), wanted)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"decay='linear' depends .* the training data have no length"),
        ({"decay": "cosine"}, r"decay='cosine' depends"),
        ({"decay": "constant", "warmup": 0.1}, r"warmup=0.1 depends .* choose decay='constant' with warmup=0\."),
    ],
)
def test_an_unknown_length_is_refused_before_the_first_step(settings, message):
    module = Module(**settings)
    with pytest.raises(ValueError, match=message):
        trainer().fit(module, DataLoader(Stream(), batch_size=2))
    assert module.rates == []


@pytest.mark.parametrize(
    ("settings", "limits", "factors"),
    [
        ({"decay": "constant"}, {}, [1, 1, 1, 1]),
        ({}, {"limit_train_batches": 4}, linear(4)),
        ({}, {"max_steps": 4}, linear(4)),
    ],
)
def test_what_needs_no_length_or_is_given_one_trains(settings, limits, factors):
    module = Module(**settings)
    trainer(**limits).fit(module, DataLoader(Stream(), batch_size=2))
    assert_rates(module, factors)


def test_accumulation_that_changes_between_epochs_ends_at_zero():
    module = Module()
    trainer(GradientAccumulationScheduler({1: 4}), max_epochs=2).fit(module)
    assert_rates(module, [*linear(10)[:8], *[0.2] * 4, *[0.1] * 4])


def test_data_of_another_length_are_planned_for_when_they_come():
    """Two epochs planned with two batches, then reloaded with six: no step without a rate."""
    module = Module(sizes=(4, 12))
    trainer(max_epochs=2, reload_dataloaders_every_n_epochs=1).fit(module)
    assert_rates(module, [1, 3 / 4, *linear(8)[2:]])


@pytest.mark.filterwarnings("ignore")  # Lightning's, of its own checkpoint
def test_a_batch_size_found_at_the_start_of_the_fit_is_planned_for(tmp_path):
    """The optimizer is built for eight steps of two examples; two of eight are made."""
    module = Module()
    trainer(BatchSizeFinder(max_trials=3, steps_per_trial=1), default_root_dir=tmp_path).fit(module)
    assert module.batch_size == 8
    module.rates = module.rates[-2:]
    assert_rates(module, linear(2))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head_lr", [None, 0.3])
def test_a_learning_rate_found_at_the_start_of_the_fit_stays(head_lr, tmp_path):
    """Lightning writes it into the optimizer, where the schedule would put its own at the next step."""
    module = Module(lr=1e-5, head_lr=head_lr, sizes=(60,))
    trainer(LearningRateFinder(num_training_steps=30, min_lr=1e-4), default_root_dir=tmp_path).fit(module)
    assert module.lr > 1e-4
    wanted = [[module.lr * factor, (head_lr or module.lr) * factor] for factor in linear(30)]
    torch.testing.assert_close(torch.tensor(module.rates[-30:]), torch.tensor(wanted))


@pytest.mark.filterwarnings("ignore")
def test_a_learning_rate_found_by_a_tuner_is_that_of_the_head_too(tmp_path):
    module = Module(lr=1e-5, sizes=(60,))
    run = trainer(default_root_dir=tmp_path)
    found = Tuner(run).lr_find(module, num_training=30, min_lr=1e-4)
    module.rates.clear()
    run.fit(module)
    assert math.isclose(found.suggestion(), module.lr)
    assert_rates(module, linear(30), lr=module.lr)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_random_weights_are_reported_once_where_no_checkpoint_replaces_them(tmp_path, command):
    batches = {} if command == "fit" else {"dataloaders": DataLoader(torch.ones(2, 2))}
    module, run = Blank(), trainer(default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match="backbone='blank' has no pretrained weights, so they are random"):
        getattr(run, command)(module, **batches)
    getattr(trainer(), command)(module, **batches)  # once is enough
    path = tmp_path / "some.ckpt"
    run.save_checkpoint(path, weights_only=False)
    getattr(trainer(max_epochs=2), command)(Blank(), **batches, ckpt_path=path)
    getattr(trainer(), command)(Blank.load_from_checkpoint(path), **batches)
