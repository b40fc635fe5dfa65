"""Stop, resume, and be the run that never stopped: bit for bit, at any step."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.resumable import Examples, Module, assert_same_checkpoint, resumable_loader, run
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import nn
from torch.utils.data import DataLoader


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Folder with the checkpoints of an uninterrupted run, for each kind of run."""
    runs: dict[str, Path] = {}

    def make(name: str, optimizer: str = "adamw", **settings) -> Path:
        if name not in runs:
            runs[name] = tmp_path_factory.mktemp(name)
            seed_everything(1)
            run(runs[name], Module(optimizer), **settings)
        return runs[name]

    return make


KINDS = {
    "sweep": {},
    "alternate": {"axis": "alternate"},
    "importance": {"order": "importance", "axis": "row"},
    "keep": {"optimizer_state": "keep", "optimizer": "sgd"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 6, 9, 10])  # before, at and after a move; the last batch of an epoch
def test_a_resumed_run_equals_an_uninterrupted_one(kind, stop, uninterrupted, tmp_path):
    settings = dict(KINDS[kind])
    whole = uninterrupted(kind, **settings)
    seed_everything(99)  # a resumed run is another process
    run(tmp_path, Module(settings.pop("optimizer", "adamw")), whole / f"step={stop}.ckpt", **settings)
    assert_same_checkpoint(tmp_path / "step=15.ckpt", whole / "step=15.ckpt")


@pytest.mark.parametrize("after_validation", [True, False])
def test_a_shuffling_loader_resumes_at_the_end_of_an_epoch(after_validation, tmp_path):
    """DataLoader(shuffle=True) draws its order from the global generator, which is restored at the end of an epoch."""
    when = {"save_on_train_epoch_end": not after_validation, "save_top_k": -1}
    shuffled = lambda: DataLoader(Examples(), batch_size=4, shuffle=True)
    seed_everything(1)
    run(
        tmp_path / "whole", Module(), train=shuffled(), checkpoint=ModelCheckpoint(tmp_path / "whole", "{step}", **when)
    )
    for stop in (5, 10):
        seed_everything(99)
        folder = tmp_path / f"resumed{stop}"
        checkpoint = ModelCheckpoint(folder, "{step}", **when)
        run(folder, Module(), tmp_path / "whole" / f"step={stop}.ckpt", train=shuffled(), checkpoint=checkpoint)
        assert_same_checkpoint(folder / "step=15.ckpt", tmp_path / "whole" / "step=15.ckpt")


OTHERS = {
    "accumulation": GradientAccumulationScheduler({0: 2, 1: 1, 2: 3}),
    "averaging": StochasticWeightAveraging(0.02, swa_epoch_start=2, annealing_epochs=2),
}


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
@pytest.mark.parametrize("stop", [1, 4, 7])
@pytest.mark.parametrize("name", OTHERS)
def test_epoch_start_hooks_are_replayed_in_a_run_that_resumes_in_the_middle_of_an_epoch(name, stop, tmp_path):
    seed_everything(1)
    run(tmp_path / "whole", Module(), others=[OTHERS[name]])
    seed_everything(99)
    run(tmp_path / "rest", Module(), tmp_path / "whole" / f"step={stop}.ckpt", others=[OTHERS[name]])
    last = max((tmp_path / "whole").iterdir(), key=lambda path: int(path.stem.removeprefix("step=")))
    assert_same_checkpoint(tmp_path / "rest" / last.name, last)


@pytest.mark.parametrize("averaging", [(), (EMAWeightAveraging(decay=0.5),)], ids=["alone", "averaged"])
def test_a_float32_slice_of_a_bfloat16_model_resumes_with_all_its_bits(averaging, tmp_path):
    """Weight averaging loads the rounded weights again after the slices were restored."""
    settings = {"slice_dtype": "float32", "others": averaging}

    class Half(Module):
        def __init__(self):
            super().__init__()
            self.to(torch.bfloat16)

        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0].bfloat16(), batch[1]), batch_idx)

    seed_everything(1)
    run(tmp_path / "whole", Half(), **settings)
    run(tmp_path / "resumed", Half(), tmp_path / "whole" / "step=4.ckpt", **settings)
    assert_same_checkpoint(tmp_path / "resumed" / "step=15.ckpt", tmp_path / "whole" / "step=15.ckpt")


def test_every_checkpoint_is_the_plain_model(uninterrupted):
    checkpoints = list(uninterrupted("sweep").glob("*.ckpt"))
    assert len(checkpoints) == 15
    for path in checkpoints:
        Module().load_state_dict(torch.load(path, weights_only=True)["state_dict"], strict=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 3}, "rank: saved 2, now 3"),
        ({"interval": 4, "seed": 1}, "seed: saved 0, now 1; interval: saved 3, now 4"),
        ({"axis": "row"}, "axis: saved 'column', now 'row'"),
        ({"targets": r"trunk\.0"}, "targets: saved 'trunk'"),
    ],
)
def test_resuming_with_other_settings_names_what_differs(settings, message, uninterrupted, tmp_path):
    with pytest.raises(MisconfigurationException, match=message):
        run(tmp_path, Module(), uninterrupted("sweep") / "step=4.ckpt", **settings)


def test_resuming_another_network_names_what_differs(uninterrupted, tmp_path):
    class Bigger(Module):
        strict_loading = False

        def __init__(self):
            super().__init__()
            self.trunk.append(nn.Linear(5, 5))

    with pytest.raises(ValueError, match=r"shapes differ in names .*only here: \['trunk.5'\]"):
        run(tmp_path, Bigger(), uninterrupted("sweep") / "step=4.ckpt")


def test_a_checkpoint_without_slices_is_refused_and_one_with_slices_needs_the_callback(uninterrupted, tmp_path):
    quiet = {"max_epochs": 4, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    plain = Trainer(**quiet, default_root_dir=tmp_path)
    plain.fit(Module(), resumable_loader())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(MisconfigurationException, match="written without SliceFineCallback"):
        run(tmp_path, Module(), tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="parameter group"):  # a warning of torch: the saved optimizer knows slices
        Trainer(**quiet, default_root_dir=tmp_path).fit(
            Module(), resumable_loader(), ckpt_path=uninterrupted("sweep") / "step=4.ckpt"
        )


def test_the_weights_alone_start_a_new_run_with_other_settings(uninterrupted, tmp_path):
    """As the error messages suggest: load the weights and pass no ckpt_path."""
    module = Module()
    module.load_state_dict(torch.load(uninterrupted("sweep") / "step=4.ckpt")["state_dict"], strict=True)
    run(tmp_path, module, rank=3, interval=1)


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from helpers import resumable as t
from lightning.pytorch import seed_everything
seed_everything(1)

class Slow(t.Module):
    def training_step(self, batch, batch_idx):
        time.sleep(0.15)
        return super().training_step(batch, batch_idx)

t.run(Path({folder!r}), Slow())
"""


def test_a_killed_run_resumes_from_the_files_on_disk(uninterrupted, tmp_path):
    """kill -9 in the middle: every checkpoint on disk is whole, and the last one leads to the same end."""
    folder = tmp_path / "killed"
    script = KILLED.format(tests=str(Path(__file__).parents[2]), folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "step=6.ckpt").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    assert len(left) < 15
    run(tmp_path / "resumed", Module(), left[-1])
    assert_same_checkpoint(tmp_path / "resumed" / "step=15.ckpt", uninterrupted("sweep") / "step=15.ckpt")
