"""Checkpoints of slices with DDP and FSDP2: equal to whole checkpoints, also with another number of processes."""

import pytest
import torch
from helpers import processes, sliced_run
from helpers.resumable import assert_same
from helpers.sliced_run import strategy_of
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from slicefine_pl import SliceFineCallback, complete_checkpoint

STEPS = 8


class Module(sliced_run.Module):
    """The same pretrained weights each time; sizes that two and three processes cannot split equally."""

    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            super().__init__(lambda parameters: torch.optim.AdamW(parameters, lr=0.05))
            self.trunk = nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 5), nn.Linear(5, 5))


def fit(folder, strategy, count, checkpoint, steps=STEPS, resume=None, axis="column"):
    """An epoch is one step on the same examples; returns the loss of an earlier checkpoint, loaded after the fit."""
    callback = SliceFineCallback(
        rank=2, targets=["trunk.0", "trunk.3"], also_train="head", interval=3, axis=axis, checkpoint=checkpoint
    )
    saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    settings = {"strategy": strategy_of(strategy), "devices": count, "max_epochs": -1, "max_steps": steps}
    trainer = sliced_run.trainer(callback, saver, enable_checkpointing=True, **settings)
    trainer.fit(module := Module(), sliced_run.loader(count), ckpt_path=resume)
    trainer.validate(module, sliced_run.loader(count), ckpt_path=folder / f"step={7 if resume else 2}.ckpt")
    return trainer.callback_metrics["val/loss"].item()


def completed(path):
    checkpoint = torch.load(path, weights_only=True)
    complete_checkpoint(checkpoint, Module())
    return checkpoint


def assert_equal(ours, theirs):
    assert_same(dict(ours["state_dict"]), dict(theirs["state_dict"]))
    assert_same(ours["optimizer_states"], theirs["optimizer_states"])
    slices = [each["callbacks"]["SliceFineCallback"] for each in (ours, theirs)]
    assert_same(*({key: value for key, value in each.items() if key != "random"} for each in slices))


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("axis", ["column", "alternate"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_completed_checkpoints_are_whole_ones_and_resume(strategy, axis, tmp_path):
    losses = {
        each: processes.run(fit, 2, tmp_path / each, strategy, 2, each, STEPS, None, axis)
        for each in ("model", "slices")
    }
    assert losses["slices"] == losses["model"]
    for step in (1, 3, 4, STEPS):
        name = f"step={step}.ckpt"
        assert_equal(completed(tmp_path / "slices" / name), completed(tmp_path / "model" / name))
    first = str(tmp_path / "slices" / "step=3.ckpt")  # right after a move
    processes.run(fit, 2, tmp_path / "rest", strategy, 2, "slices", STEPS, first, axis)
    last = f"step={STEPS}.ckpt"
    assert_equal(completed(tmp_path / "rest" / last), completed(tmp_path / "model" / last))


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("before", "after"), [(("fsdp2", 2), ("fsdp2", 3)), (("ddp", 2), ("fsdp2", 2))], ids=str)
def test_another_strategy_or_number_of_processes_resumes_from_slices_as_from_the_whole(before, after, tmp_path):
    """The batches differ then, so the comparison is with resuming from the whole checkpoint."""
    rest = {}
    for each in ("model", "slices"):
        processes.run(fit, before[1], tmp_path / each, *before, each)
        first = str(tmp_path / each / "step=4.ckpt")
        processes.run(fit, after[1], tmp_path / f"{each} rest", *after, each, STEPS, first)
        rest[each] = completed(tmp_path / f"{each} rest" / f"step={STEPS}.ckpt")
    assert_equal(rest["slices"], rest["model"])


def other_base(folder, strategy):
    trainer = sliced_run.trainer(
        SliceFineCallback(**sliced_run.SETTINGS, checkpoint="slices"),
        strategy=strategy_of(strategy),
        devices=2,
        max_epochs=3,
    )
    module = Module()
    module.trunk[4].weight.data[1, 2] += 1e-3
    try:
        trainer.fit(module, sliced_run.loader(2), ckpt_path=folder / "step=4.ckpt")
    except ValueError as error:
        return str(error)


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_every_process_refuses_another_base(strategy, tmp_path):
    processes.run(fit, 2, tmp_path, strategy, 2, "slices", 4)
    for message in processes.run(other_base, 2, tmp_path, strategy):
        assert "trunk.4.weight has other values" in message
