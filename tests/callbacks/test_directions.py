"""SliceFineCallback with slices along directions: when they move, what is refused, and exact resumption."""

import copy

import pytest
import torch
from helpers.resumable import ResumableLoader, assert_same
from helpers.sliced_run import SETTINGS, Module, loader, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn, optim

from slicefine_pl import SliceFineCallback, SparsityCallback
from slicefine_pl.slicing import apply_slices
from slicefine_pl.slicing.slice import Slice

STEPS = 16


class Turns(Callback):
    """Record at which steps the directions changed."""

    def __init__(self, callback):
        self.callback, self.steps, self.last = callback, [], None

    def on_train_batch_end(self, trainer, *_):
        view = next(iter(self.callback.opened()))
        if self.last is not None and not torch.equal(self.last, view.directions):
            self.steps.append(trainer.global_step)
        self.last = view.directions.clone()


@pytest.mark.parametrize(
    ("basis", "interval", "moves"),
    [("random", None, []), ("random", 4, [4, 8, 12, 16]), ("gradient", None, [10]), ("pca", 8, [8, 10, 16])],
)
def test_directions_that_batches_show_are_taken_after_ten_steps(basis, interval, moves):
    callback = SliceFineCallback(**SETTINGS, basis=basis, interval=interval)
    turns = Turns(callback)
    module = Module(lambda parameters: optim.AdamW(parameters, lr=1e-3))
    trainer(callback, turns).fit(module, loader(STEPS))
    assert turns.steps == moves
    assert all(type(child) in (Module, nn.Sequential, nn.Linear, nn.Tanh) for child in module.modules())


@pytest.mark.parametrize(("interval", "stop", "stays"), [(None, 9, False), (None, 10, True), (16, 12, False)])
def test_sketches_end_with_the_last_move(interval, stop, stays, tmp_path):
    """Also in a run that resumes after it."""
    seen = {}

    class Watch(Callback):
        def on_train_batch_start(self, trainer, module, *_):
            slices = [child for child in module.modules() if isinstance(child, Slice)]
            seen[trainer.global_step] = {slice_.stays for slice_ in slices}

    def train(steps, resume=None):
        callback = SliceFineCallback(**SETTINGS, basis="gradient", interval=interval)
        run = trainer(callback, Watch(), max_steps=steps, max_epochs=2)
        run.fit(Module(lambda parameters: optim.AdamW(parameters, lr=1e-3)), loader(STEPS), ckpt_path=resume)
        return run

    train(stop).save_checkpoint(tmp_path / "stopped.ckpt")
    assert seen[stop - 1] == {False}
    train(stop + 1, tmp_path / "stopped.ckpt")
    assert seen[stop] == {stays}


@pytest.mark.parametrize("basis", ["random", "gradient", "pca"])
@pytest.mark.parametrize("stop", [3, 9, 10, 12, 13])
def test_a_resumed_run_equals_the_uninterrupted_run(basis, stop, tmp_path):
    data = loader(STEPS).dataset

    def train(folder, resume=None):
        seed_everything(1 if resume is None else 99, verbose=False)
        saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False)
        callback = SliceFineCallback(**SETTINGS, basis=basis, interval=6)
        run = trainer(callback, saver, max_steps=STEPS, enable_checkpointing=True)
        torch.manual_seed(0)
        module = Module(lambda parameters: optim.AdamW(parameters, lr=1e-3))
        run.fit(module, ResumableLoader(data, batch_size=4), ckpt_path=resume)

    train(tmp_path / "whole")
    train(tmp_path / "rest", tmp_path / "whole" / f"step={stop}.ckpt")
    whole, rest = (torch.load(tmp_path / name / f"step={STEPS}.ckpt") for name in ("whole", "rest"))
    for part in ("state_dict", "optimizer_states"):
        assert_same(rest[part], whole[part])
    assert_same(rest["callbacks"]["SliceFineCallback"], whole["callbacks"]["SliceFineCallback"])


@pytest.mark.parametrize("stop", [3, 10, 13])
def test_a_resumed_run_in_half_precision_equals_the_uninterrupted_run(stop, tmp_path):
    """And the checkpoints contain the weights with the change, as the module has them at the end."""
    data = loader(STEPS, dtype=torch.bfloat16).dataset

    def train(folder, resume=None):
        saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False)
        callback = SliceFineCallback(**SETTINGS, basis="gradient", interval=6, slice_dtype="float32")
        run = trainer(callback, saver, max_steps=STEPS, enable_checkpointing=True, precision="bf16-true")
        torch.manual_seed(0)
        module = Module(lambda parameters: optim.AdamW(parameters, lr=1e-3))
        run.fit(module, ResumableLoader(data, batch_size=4), ckpt_path=resume)
        return module

    module = train(tmp_path / "whole")
    train(tmp_path / "rest", tmp_path / "whole" / f"step={stop}.ckpt")
    whole, rest = (torch.load(tmp_path / name / f"step={STEPS}.ckpt") for name in ("whole", "rest"))
    for part in ("state_dict", "optimizer_states"):
        assert_same(rest[part], whole[part])
    assert_same(rest["callbacks"]["SliceFineCallback"], whole["callbacks"]["SliceFineCallback"])
    assert_same(module.state_dict(), whole["state_dict"])


@pytest.mark.parametrize("basis", ["random", "gradient"])
def test_a_resumed_run_saves_the_same_slice_file(basis, tmp_path):
    """After the first move, with positions that only the checkpoint knows; the file gives the trained module."""
    data = loader(STEPS).dataset

    def train(folder, resume=None):
        saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False)
        callback = SliceFineCallback(**SETTINGS | {"rank": 1}, basis=basis, interval=10)
        run = trainer(callback, saver, max_steps=STEPS, enable_checkpointing=True)
        torch.manual_seed(0)
        base = Module(lambda parameters: optim.AdamW(parameters, lr=1e-3))
        module = copy.deepcopy(base)
        run.fit(module, ResumableLoader(data, batch_size=4), ckpt_path=resume)
        file = callback.save(folder / "a.safetensors")
        assert {each.directions.shape[1] for each in file.directions} == {2}
        apply_slices(base, folder / "a.safetensors")
        for name, value in module.state_dict().items():
            torch.testing.assert_close(base.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)

    train(tmp_path / "whole")
    train(tmp_path / "rest", tmp_path / "whole" / "step=13.ckpt")
    assert (tmp_path / "whole" / "a.safetensors").read_bytes() == (tmp_path / "rest" / "a.safetensors").read_bytes()


def test_averages_of_changes_in_half_precision_are_refused():
    callbacks = [SliceFineCallback(**SETTINGS, basis="random"), EMAWeightAveraging()]
    with pytest.raises(MisconfigurationException, match=r"cannot average slices along directions .* as trunk\.0"):
        trainer(*callbacks, precision="bf16-true").fit(Module(), loader(dtype=torch.bfloat16))


def test_pruned_weights_are_refused():
    callbacks = [SliceFineCallback(**SETTINGS, basis="random"), SparsityCallback(0.5, targets="trunk")]
    with pytest.raises(ValueError, match=r"lie along directions and change all weights"):
        trainer(*callbacks).fit(Module(), loader())


def test_an_optimizer_that_scales_with_size_is_refused_at_any_scale():
    module = Module(lambda parameters: optim.Adafactor(parameters, 0.01))
    with pytest.raises(MisconfigurationException, match=r"scales its steps with the size of the parameter"):
        trainer(SliceFineCallback(**SETTINGS, basis="random", lr_scale=1)).fit(module, loader())


def test_wrong_settings_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match=r"axis='row' is for single columns or rows"):
        SliceFineCallback(basis="pca", axis="row")
    with pytest.raises(ValueError, match=r"optimizer_state='keep' does not work with directions"):
        SliceFineCallback(basis="pca", optimizer_state="keep")
