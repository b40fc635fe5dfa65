"""Checkpoints of slices: completed, they are the whole checkpoint, and a resumed run is the uninterrupted one."""

import copy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import resumable
from helpers.resumable import Examples, assert_same, resumable_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import nn
from torch.utils.data import DataLoader
from transformers.pytorch_utils import Conv1D

from slicefine_pl import FullyShardedStrategy, SliceFineCallback, SparsityCallback, complete_checkpoint
from slicefine_pl.modules.fine_tuning import FineTuningModule

LAST = "step=15.ckpt"


class Plain(resumable.Module):
    """The same pretrained weights each time; knows nothing of slices."""

    def __init__(self, optimizer="adamw", seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            super().__init__(optimizer)
        self.save_hyperparameters()
        self.lr = 0.05

    test_step = resumable.Module.validation_step

    def predict_step(self, batch, batch_idx):
        return self.head(self.trunk(batch[0]))


class Module(Plain):
    """The line that load_from_checkpoint needs."""

    def on_load_checkpoint(self, checkpoint):
        complete_checkpoint(checkpoint, self)


class Parts(nn.Module):
    """Every kind of matrix, buffers that training changes, tied weights and extra state."""

    def __init__(self):
        super().__init__()
        self.words, self.first, self.tied = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.tied.weight = self.first.weight
        self.conv, self.norm = nn.Conv1d(6, 6, 3, padding=1, groups=2), nn.BatchNorm1d(6)
        self.gpt, self.maps = Conv1D(8, 6), nn.Linear(8, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.experts = nn.Parameter(torch.randn(2, 6, 6))
        self.compiled = torch.compile(nn.Linear(6, 5), backend="eager")
        self.register_buffer("mask", torch.full((3,), -torch.inf))

    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        assert state == {"calls": 3}

    def forward(self, x):
        x = self.words((3 * x.abs()).long().clamp(max=8))
        x = self.norm(self.conv(x.transpose(1, 2))).transpose(1, 2).contiguous()
        x = self.maps(self.gpt(x).tanh())
        x = x + self.attention(x, x, x)[0]
        x = x + sum(x @ each for each in self.experts)
        return self.compiled(self.tied(self.first(x.mean(1))))


class WithParts(Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.trunk = Parts()


def completed(path, module=None):
    checkpoint = torch.load(path, weights_only=True)
    complete_checkpoint(checkpoint, module or Plain())
    return checkpoint


def assert_equal_runs(ours, theirs, module=None):
    """Weights, optimizer and slices are equal bit for bit; ``theirs`` may be a checkpoint of the whole model."""
    ours, theirs = completed(ours, copy.deepcopy(module)), completed(theirs, copy.deepcopy(module))
    assert_same(list(ours["state_dict"].items()), list(theirs["state_dict"].items()))  # in the same order, too
    for part in ("optimizer_states", "lr_schedulers"):
        assert_same(ours[part], theirs[part])
    assert_same(ours["callbacks"]["SliceFineCallback"], theirs["callbacks"]["SliceFineCallback"])


KINDS = {
    "sweep": {},
    "alternate": {"axis": "alternate"},
    "importance": {"order": "importance", "axis": "row"},
    "keep": {"optimizer_state": "keep", "optimizer": "sgd"},
    "other type": {"slice_dtype": "float64"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder with a checkpoint of each step, of the whole model or of slices."""
    made: dict[tuple[str, str], Path] = {}

    def make(kind: str, checkpoint: str) -> Path:
        if (kind, checkpoint) not in made:
            made[kind, checkpoint] = folder = tmp_path_factory.mktemp(f"{kind}-{checkpoint}".replace(" ", "-"))
            seed_everything(1)
            fit(folder, kind, checkpoint)
        return made[kind, checkpoint]

    return make


def fit(folder, kind, checkpoint, ckpt_path=None):
    settings = dict(KINDS[kind])
    module = Plain(settings.pop("optimizer", "adamw"))
    train(folder, module, checkpoint, ckpt_path, validation=data(), epochs=3, **settings)


def train(folder, module, checkpoint, ckpt_path=None, validation=None, epochs=2, **settings):
    """Save a checkpoint of each step."""
    saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False)
    callback = SliceFineCallback(**(resumable.SETTINGS | settings), checkpoint=checkpoint)
    quiet(callback, saver, max_epochs=epochs).fit(module, resumable_loader(), validation, ckpt_path=ckpt_path)


def quiet(*callbacks, **settings):
    shown = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(callbacks=list(callbacks), **(shown | settings))


def data():
    return DataLoader(Examples(), batch_size=4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_completed_checkpoint_is_that_of_the_whole_model_at_every_step(kind, runs):
    for step in range(1, 16):
        assert_equal_runs(runs(kind, "slices") / f"step={step}.ckpt", runs(kind, "model") / f"step={step}.ckpt")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 6, 9, 10])  # before, at and after a move; the last batch of an epoch
def test_a_resumed_run_equals_an_uninterrupted_one(kind, stop, runs, tmp_path):
    seed_everything(99)  # a resumed run is another process
    fit(tmp_path, kind, "slices", runs(kind, "slices") / f"step={stop}.ckpt")
    assert_equal_runs(tmp_path / LAST, runs(kind, "model") / LAST)


@pytest.mark.parametrize(("before", "after"), [("model", "slices"), ("slices", "model")])
def test_a_run_may_change_what_its_checkpoints_contain(before, after, runs, tmp_path):
    fit(tmp_path, "sweep", after, runs("sweep", before) / "step=4.ckpt")
    assert_equal_runs(tmp_path / LAST, runs("sweep", "model") / LAST)


def test_the_file_lacks_the_frozen_matrix(tmp_path):
    """A frozen matrix of 100 x 100 numbers, and a slice of 2 of 100 columns of another."""

    class Wide(Module):
        def __init__(self):
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(6, 100), nn.Linear(100, 100), nn.Linear(100, 5))

    for checkpoint in ("model", "slices"):
        train(tmp_path / checkpoint, Wide(), checkpoint, targets=r"trunk\.1", interval=None)
    whole, small = ((tmp_path / name / "step=10.ckpt").stat().st_size for name in ("model", "slices"))
    saved = torch.load(tmp_path / "slices" / "step=10.ckpt", weights_only=True)
    assert whole - small > 0.9 * 4 * 100 * 98
    shapes = {name: tuple(values.shape) for name, values in saved["slicefine_slices"]["tensors"].items()}
    assert shapes == {
        "trunk.1.weight.columns.index": (2,),
        "trunk.1.weight.columns": (100, 2),
        "head.weight": (3, 5),
        "head.bias": (3,),
    }
    assert sum(values.numel() for values in saved["state_dict"].values()) == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", [{}, {"axis": "alternate"}, {"targets": [r"in_proj_weight\.q", "maps"]}], ids=str)
def test_every_kind_of_matrix_and_state(settings, tmp_path):
    settings = {"targets": ["words", "conv", "gpt", "maps", "attention", "experts", "compiled"]} | settings
    for checkpoint in ("model", "slices"):
        seed_everything(1)
        train(tmp_path / checkpoint, module := WithParts(), checkpoint, **settings)
    small, whole = tmp_path / "slices", tmp_path / "model"
    assert_equal_runs(small / "step=4.ckpt", whole / "step=4.ckpt", WithParts())
    assert_equal_runs(small / "step=4.ckpt", whole / "step=4.ckpt", module)  # with the lines of later steps
    train(tmp_path / "rest", WithParts(), "slices", small / "step=4.ckpt", **settings)
    assert_equal_runs(tmp_path / "rest" / "step=10.ckpt", whole / "step=10.ckpt", WithParts())


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {own!r}]
import test_small_checkpoints as t
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch import seed_everything
from slicefine_pl import SliceFineCallback

class Kill(t.Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 4:
            os.{call} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

seed_everything(1)
saver = ModelCheckpoint({folder!r}, "last", every_n_train_steps=1, enable_version_counter=False)
t.quiet(SliceFineCallback(**t.resumable.SETTINGS, checkpoint="slices"), saver, Kill(), max_epochs=3).fit(
    t.Plain(), t.resumable_loader(), t.data())
"""


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(call, runs, tmp_path):
    folder, here = tmp_path / "killed", Path(__file__).parent
    script = KILLED.format(tests=str(here.parents[1]), own=str(here), folder=str(folder), call=call)
    process = subprocess.run(
        [sys.executable, "-c", script], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=120, check=False
    )
    assert process.returncode == -signal.SIGKILL
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 4
    fit(tmp_path / "rest", "sweep", "slices", folder / "last.ckpt")
    assert_equal_runs(tmp_path / "rest" / LAST, runs("sweep", "model") / LAST)


def changed(module, change):
    with torch.no_grad():
        change(module)
    return module


WRONG = {
    "one weight outside of the slices": (
        lambda module: module.trunk[3].weight[0, 0].add_(0.1),
        r"trunk\.3\.weight has other values than the base.*norm .* here, .* there",
    ),
    "a frozen bias": (lambda module: module.trunk[0].bias.add_(1), r"trunk\.0\.bias has other values"),
    "type": (lambda module: module.half(), r"trunk\.0\.weight has other values.*in float16 here, and was in float32"),
    "shape": (
        lambda module: setattr(module.trunk, "3", nn.Linear(8, 4)),
        r"trunk\.3\.weight has the shape \(4, 8\) here, which does not fit columns of shape \(5, \d\)",
    ),
    "name": (lambda module: module.trunk.pop(3), r"lacks 'trunk\.3\.weight'"),
    "seed": (lambda module: module.load_state_dict(Plain(seed=5).state_dict()), r"trunk\.0\.weight has other values"),
}


@pytest.mark.parametrize("how", WRONG)
def test_another_base_is_refused_before_anything_is_changed(how, runs, tmp_path):
    change, message = WRONG[how]
    module = changed(Module(), change)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=message):
        completed(runs("sweep", "slices") / "step=4.ckpt", module)
    trainer = quiet(SliceFineCallback(**resumable.SETTINGS, checkpoint="slices"), max_epochs=3)
    if how not in ("name", "shape"):
        with pytest.raises(ValueError, match=r"Build the module anew"):
            trainer.fit(module, resumable_loader(), ckpt_path=runs("sweep", "slices") / "step=4.ckpt")
    assert_same(dict(module.state_dict()), dict(before))


def test_a_whole_checkpoint_stays_as_it_is(runs):
    assert_same(completed(runs("sweep", "model") / LAST), torch.load(runs("sweep", "model") / LAST, weights_only=True))


def test_load_from_checkpoint(runs):
    path = runs("sweep", "slices") / "step=7.ckpt"
    expected = torch.load(runs("sweep", "model") / "step=7.ckpt", weights_only=True)["state_dict"]
    assert_same(dict(Module.load_from_checkpoint(path, weights_only=True).state_dict()), dict(expected))
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="complete_checkpoint" if strict else "size mismatch"):
            Plain.load_from_checkpoint(path, strict=strict)
    with pytest.raises(ValueError, match="another base"):
        Module.load_from_checkpoint(path, seed=1)


class Ours(FineTuningModule):
    """A module of the package, which needs no line."""

    def __init__(self, seed=0):
        super().__init__(lr=0.01)
        self.save_hyperparameters()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.trunk, self.head_ = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)), nn.Linear(5, 3)

    def write_files(self, folder):
        raise NotImplementedError

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head_(self.trunk(batch[0])), batch[1])


def test_modules_of_the_package_load_a_checkpoint_of_slices(tmp_path):
    train(tmp_path, module := Ours(), "slices", also_train="head_")
    found = Ours.load_from_checkpoint(tmp_path / "step=10.ckpt", weights_only=True)
    assert_same(dict(found.state_dict()), dict(module.state_dict()))
    with pytest.raises(ValueError, match=r"trunk\.0\.weight has other values"):
        Ours.load_from_checkpoint(tmp_path / "step=10.ckpt", weights_only=True, seed=1)


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_other_stages_load_a_checkpoint_of_slices(verb, runs):
    """With the callback any module does, without it the module needs its line."""
    small, whole = runs("sweep", "slices") / "step=7.ckpt", runs("sweep", "model") / "step=7.ckpt"
    expected = quiet()
    [loss] = getattr(expected, verb)(module := Plain(), data(), ckpt_path=whole)[:1]
    wanted = dict(module.state_dict())
    callback = SliceFineCallback(**resumable.SETTINGS)
    for trainer, module in ((quiet(callback), Plain()), (quiet(), Module())):
        [found] = getattr(trainer, verb)(module, data(), ckpt_path=small)[:1]
        assert_same(found, loss)
        assert_same(dict(module.state_dict()), wanted)
    with pytest.raises(RuntimeError, match="complete_checkpoint"):
        getattr(quiet(), verb)(Plain(), data(), ckpt_path=small)


@pytest.mark.parametrize("kind", ["sweep", "alternate"])
@pytest.mark.parametrize("line", [Plain, Module])
def test_best_and_last_after_a_fit_of_the_same_module(kind, line, tmp_path):
    """Lines that were trained after the best checkpoint get the base's values back."""

    class Best(ModelCheckpoint):
        def on_validation_end(self, trainer, pl_module):
            trainer.callback_metrics["score"] = torch.tensor(float(trainer.current_epoch))
            super().on_validation_end(trainer, pl_module)

    saver = Best(tmp_path, "{epoch}", monitor="score", save_last=True, save_top_k=-1)
    callback = SliceFineCallback(**(resumable.SETTINGS | KINDS[kind]), checkpoint="slices")
    trainer, module = quiet(callback, saver, max_epochs=3), line()
    trainer.fit(module, resumable_loader(), data())
    trained = copy.deepcopy(module.state_dict())
    for which, same in (("best", False), ("last", True), ("best", False)):
        trainer.test(module, data(), ckpt_path=which, verbose=False)
        path = tmp_path / {"best": "epoch=0.ckpt", "last": "last.ckpt"}[which]
        assert_same(dict(module.state_dict()), dict(completed(path)["state_dict"]))
        assert all(torch.equal(value, trained[name]) for name, value in module.state_dict().items()) == same
    trainer.fit_loop.max_epochs = 5
    trainer.fit(module, resumable_loader(), data(), ckpt_path="last")
    trainer.save_checkpoint(tmp_path / "on.ckpt")
    fresh = line()
    other = SliceFineCallback(**(resumable.SETTINGS | KINDS[kind]), checkpoint="slices")
    quiet(other, max_epochs=5, enable_checkpointing=False).fit(
        fresh, resumable_loader(), data(), ckpt_path=tmp_path / "last.ckpt"
    )
    assert_same(dict(module.state_dict()), dict(fresh.state_dict()))
    assert_same(completed(tmp_path / "on.ckpt")["state_dict"], dict(fresh.state_dict()))


def test_a_trained_module_is_not_the_base_of_another_run(runs):
    module = Module()
    module.load_state_dict(completed(runs("sweep", "slices") / LAST)["state_dict"])
    with pytest.raises(ValueError, match=r"trunk\.0\.weight has other values"):
        completed(runs("sweep", "slices") / "step=4.ckpt", module)


def test_a_search_restores_the_weights_of_its_start(tmp_path):
    found = {}
    for checkpoint in ("model", "slices"):
        seed_everything(1)
        callback = SliceFineCallback(**resumable.SETTINGS, checkpoint=checkpoint)
        search = LearningRateFinder(num_training_steps=6, early_stop_threshold=None)
        trainer = quiet(callback, search, max_epochs=2, default_root_dir=tmp_path, enable_checkpointing=False)
        trainer.fit(module := Plain(), resumable_loader())
        found[checkpoint] = dict(module.state_dict())
    assert_same(found["slices"], found["model"])


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_the_base_is_rounded_as_in_training(precision, tmp_path):
    for checkpoint in ("model", "slices"):
        seed_everything(1)
        callback = SliceFineCallback(**resumable.SETTINGS, checkpoint=checkpoint)
        trainer = quiet(callback, max_epochs=1, precision=precision, enable_checkpointing=False)
        dtype = torch.bfloat16 if precision == "bf16-true" else torch.float64
        trainer.fit(Plain(), DataLoader([(x.to(dtype), y) for x, y in data()], batch_size=None))
        trainer.save_checkpoint(tmp_path / f"{checkpoint}.ckpt")
    assert_equal_runs(tmp_path / "slices.ckpt", tmp_path / "model.ckpt")
    small, whole = (Module.load_from_checkpoint(tmp_path / f"{each}.ckpt") for each in ("slices", "model"))
    assert_same(dict(small.state_dict()), dict(whole.state_dict()))


def test_a_file_of_weights_alone_contains_the_whole_model(tmp_path):
    callback = SliceFineCallback(**resumable.SETTINGS, checkpoint="slices")
    quiet(callback, ModelCheckpoint(tmp_path, "a", save_weights_only=True), max_epochs=1).fit(Plain(), data())
    Plain.load_from_checkpoint(tmp_path / "a.ckpt")


class Late(Callback):
    """Add a buffer after the slices were opened."""

    def on_train_start(self, trainer, pl_module):
        pl_module.register_buffer("late", torch.arange(4.0))


def test_what_the_slices_were_opened_without_is_saved_whole(tmp_path):
    callback = SliceFineCallback(**resumable.SETTINGS, checkpoint="slices")
    quiet(callback, Late(), ModelCheckpoint(tmp_path, "a"), max_epochs=1).fit(module := Plain(), data())
    assert_same(completed(tmp_path / "a.ckpt")["state_dict"], dict(module.state_dict()))


class Clamp(Callback):
    """Change weights outside of the slices."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        pl_module.trunk[3].weight.data.clamp_(-0.1, 0.1)


def test_a_base_that_changes_during_the_run_is_refused(tmp_path):
    callback = SliceFineCallback(**resumable.SETTINGS, checkpoint="slices")
    saver = ModelCheckpoint(tmp_path, "a", every_n_train_steps=1)
    with pytest.raises(MisconfigurationException, match=r"trunk\.3\.weight has changed.*Use checkpoint='model'"):
        quiet(callback, Clamp(), saver, max_epochs=1).fit(Plain(), data())
    assert not list(tmp_path.iterdir())


REFUSED = {
    "prunes": lambda: SparsityCallback(0.5),
    "average contains": lambda: EMAWeightAveraging(),
    "whose average": lambda: StochasticWeightAveraging(0.1),
}


@pytest.mark.parametrize("words", REFUSED)
def test_callbacks_that_change_all_weights_are_refused(words):
    callback = SliceFineCallback(**resumable.SETTINGS, checkpoint="slices")
    with pytest.raises(MisconfigurationException, match=words):
        quiet(callback, REFUSED[words](), max_epochs=1).fit(Plain(), data())


def test_settings_that_need_the_whole_model_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="checkpoint='slices' does not work with directions"):
        SliceFineCallback(checkpoint="slices", basis="random")
    with pytest.raises(ValueError, match="checkpoint='weights'"):
        SliceFineCallback(checkpoint="weights")
    trainer = quiet(SliceFineCallback(checkpoint="slices"))
    monkeypatch.setattr(Trainer, "strategy", FullyShardedStrategy(save_distributed_checkpoint=True))
    with pytest.raises(MisconfigurationException, match="save_distributed_checkpoint"):
        trainer.callbacks[0].setup(trainer, Plain(), "fit")


def test_a_module_without_weights_is_refused():
    with torch.device("meta"):
        module = Plain()
    callback = SliceFineCallback(**resumable.SETTINGS, checkpoint="slices")
    with pytest.raises(MisconfigurationException, match=r"trunk\.0\.weight has none yet"):
        callback.setup(quiet(callback), module, "fit")
