"""Checkpoints and metrics in real runs, when the disk fills up and while a link is replaced."""

import errno
import os
from pathlib import Path

import fsspec
import pytest
import torch
from helpers.sliced_run import SETTINGS, Module, loader, trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins import AsyncCheckpointIO, TorchCheckpointIO

from slicefine_pl import SliceFineCallback, SparsityCallback
from slicefine_pl.callbacks import PreemptionCheckpoint
from slicefine_pl.callbacks.support import checkpoint_files
from slicefine_pl.callbacks.support.checkpoint_files import AtomicCheckpointIO


def checkpoint(folder, **settings):
    chosen = {"filename": "last", "every_n_train_steps": 1, "enable_version_counter": False} | settings
    return ModelCheckpoint(folder, **chosen)


class FullFrom(Callback):
    """From a given step on, writing to the disk fails."""

    def __init__(self, step, monkeypatch):
        self.step, self.monkeypatch = step, monkeypatch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.monkeypatch.setattr(os, "fsync", self.fail)

    def fail(self, descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("ours", [lambda folder: SliceFineCallback(**SETTINGS), PreemptionCheckpoint])
def test_a_full_disk_keeps_the_last_complete_checkpoint(tmp_path, monkeypatch, ours):
    run = trainer(ours(tmp_path), checkpoint(tmp_path), FullFrom(4, monkeypatch), enable_checkpointing=True)
    with pytest.raises(OSError, match=r"No space left on device: .*last\.ckpt") as caught:
        run.fit(Module(), loader(8))
    assert caught.value.errno == errno.ENOSPC
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_temporary_folder_is_not_used(tmp_path, monkeypatch):
    """From there, a checkpoint on another device would be copied over the old one."""
    scratch = tmp_path / "temporary"
    monkeypatch.setattr("tempfile.tempdir", str(scratch))  # it does not exist, so writing there fails
    trainer(SliceFineCallback(**SETTINGS), checkpoint(tmp_path / "run"), enable_checkpointing=True).fit(
        Module(), loader(3)
    )
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_lightning_handles_remote_paths():
    run = trainer(SliceFineCallback(**SETTINGS))
    run.fit(Module(), loader(2))
    run.save_checkpoint("memory://bucket/run/last.ckpt")
    with fsspec.open("memory://bucket/run/last.ckpt", "rb") as file:
        assert torch.load(file, weights_only=True)["global_step"] == 2


class OwnIO(TorchCheckpointIO):
    pass


@pytest.mark.parametrize("given", [None, OwnIO, AsyncCheckpointIO, lambda: AsyncCheckpointIO(OwnIO())])
def test_a_checkpoint_io_of_the_user_is_kept(tmp_path, given):
    plugins = [] if given is None else [given()]
    run = trainer(SparsityCallback(targets="trunk.2", interval=1), plugins=plugins)
    run.fit(Module(), loader(4))
    plugin = run.strategy.checkpoint_io
    base = plugin.checkpoint_io if isinstance(plugin, AsyncCheckpointIO) else plugin
    own = given is OwnIO or (given is not None and given is not AsyncCheckpointIO)
    assert type(base) is (OwnIO if own else AtomicCheckpointIO)
    run.save_checkpoint(tmp_path / "last.ckpt")
    plugin.teardown()
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


def test_the_link_to_the_last_checkpoint_is_valid_at_every_moment(tmp_path, monkeypatch):
    seen = []

    def watched(function):
        def call(*args):
            result = function(*args)
            if (tmp_path / "last.ckpt").is_symlink():
                seen.append(torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"])
            return result

        return call

    for name in ("unlink", "remove", "replace", "symlink"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    saver = checkpoint(tmp_path, filename="{step}", save_last="link")
    trainer(SliceFineCallback(**SETTINGS), saver, enable_checkpointing=True).fit(Module(), loader(4))
    assert seen == sorted(seen)
    assert set(seen) == {1, 2, 3, 4}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "step=4.ckpt"]
    assert os.readlink(tmp_path / "last.ckpt") == "step=4.ckpt"


def test_a_file_system_without_links_gets_a_copy(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(checkpoint_files, "replace_link", refuse)
    saver = checkpoint(tmp_path, filename="{step}", save_last="link", save_top_k=-1)
    trainer(SliceFineCallback(**SETTINGS), saver, enable_checkpointing=True).fit(Module(), loader(2))
    assert not (tmp_path / "last.ckpt").is_symlink()
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2


def test_metrics_that_cannot_be_written_are_written_later(tmp_path, monkeypatch):
    """The disk is full from step 2 to step 4 of 6."""

    class SpaceAgain(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 4:
                monkeypatch.undo()

    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    callbacks = [SliceFineCallback(**SETTINGS, interval=2), FullFrom(2, monkeypatch), SpaceAgain()]
    run = trainer(*callbacks, logger=logger, log_every_n_steps=1)
    with pytest.warns(UserWarning, match=r"metrics\.csv was not written .*No space left"):
        run.fit(Module(), loader(6))
    rows = Path(logger.log_dir, "metrics.csv").read_text().splitlines()
    header = rows[0].split(",")
    steps = [
        int(row.split(",")[header.index("step")]) for row in rows[1:] if row.split(",")[header.index("train/loss")]
    ]
    assert steps == [0, 1, 2, 3, 4, 5]


class BrokenLogger(Logger):
    """Every method that writes fails, as if the server of the logger were down."""

    name, version, save_dir = "broken", 0, "there"

    def fail(self, *args, **kwargs):
        self.calls = [*getattr(self, "calls", ()), args]
        raise ConnectionError("server is gone")

    log_metrics = log_hyperparams = save = finalize = after_save_checkpoint = fail


def test_a_logger_that_cannot_write_does_not_end_the_run(tmp_path):
    logger = BrokenLogger()
    callbacks = [SliceFineCallback(**SETTINGS), checkpoint(tmp_path)]
    run = trainer(*callbacks, logger=logger, log_every_n_steps=1, enable_checkpointing=True)
    with pytest.warns(UserWarning, match=r"The log of BrokenLogger in there was not written \(server is gone\)"):
        run.fit(Module(), loader(3))
    assert run.global_step == 3
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    assert len(logger.calls) > 3


def test_a_bug_in_a_logger_is_not_hidden():
    class Faulty(BrokenLogger):
        def log_metrics(self, metrics, step=None):
            raise KeyError(step)

    logger = Faulty()
    with pytest.raises(KeyError), pytest.warns(UserWarning, match="server is gone"):
        trainer(SliceFineCallback(**SETTINGS), logger=logger, log_every_n_steps=1).fit(Module(), loader(3))
