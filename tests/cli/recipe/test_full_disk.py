"""When the disk fills up, training and its scores are not lost, and the message names the file."""

import errno
import os
import re
from pathlib import Path

import pytest
import torch
import yaml

from slicefine_pl.modules import TextClassifier

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quiet")]


@pytest.fixture
def full(monkeypatch):
    """A function; after its call, only some files can be written."""

    def fill(*spared):
        fsync = os.fsync

        def fail(descriptor):
            name = os.readlink(f"/proc/self/fd/{descriptor}")
            if not any(part in name for part in spared) and not (spared and Path(name).is_dir()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fail)

    return fill


def with_pictures():
    settings = yaml.safe_load(Path("recipe.yaml").read_text())
    settings["trainer"]["callbacks"].insert(1, {"class_path": "slicefine_pl.callbacks.SliceMap"})
    Path("recipe.yaml").write_text(yaml.safe_dump(settings))


def at_the_end_of_training(monkeypatch, action):
    """The disk fills up after the last checkpoint, before the callbacks write their plots."""
    monkeypatch.setattr(TextClassifier, "on_train_end", lambda self: action(), raising=False)


def test_a_picture_does_not_end_the_run(recipe, monkeypatch, full, capsys):
    with_pictures()
    on_train_epoch_end = TextClassifier.on_train_epoch_end
    folder = Path("runs/t/version_0")

    def after_the_last_epoch(self):
        on_train_epoch_end(self)
        if self.current_epoch == 1:
            full("/checkpoints/", ".part/new")  # of an export

    monkeypatch.setattr(TextClassifier, "on_train_epoch_end", after_the_last_epoch)
    with pytest.warns(UserWarning, match=r"slices\.png was not written .*No space left on device"):
        recipe("fit")
    assert (folder / "export" / "model.safetensors").is_file()
    assert not (folder / "slices.png").exists()
    assert "test/accuracy after" in capsys.readouterr().out


def test_an_export_that_fails_costs_neither_scores_nor_checkpoints(recipe, monkeypatch, full, capsys):
    at_the_end_of_training(monkeypatch, full)
    with pytest.raises(SystemExit) as stopped:
        recipe("fit")
    output = capsys.readouterr()
    assert stopped.value.code == 2
    assert "test/accuracy after" in output.out
    assert "error: export to 'runs/t/version_0/export' failed: [Errno 28] No space left" in output.err
    [call] = re.findall(r"in Python (\S+) exports it", output.err)
    folder = Path.cwd()
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert eval(call, {"TextClassifier": TextClassifier}).joinpath("model.safetensors").is_file()
    assert torch.load("runs/t/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 12


def test_a_checkpoint_that_cannot_be_written_is_named_in_one_sentence(recipe, monkeypatch, full, capsys):
    on_train_epoch_start = TextClassifier.on_train_epoch_start

    def in_the_second_epoch(self):
        on_train_epoch_start(self)
        if self.current_epoch == 1:
            full()

    monkeypatch.setattr(TextClassifier, "on_train_epoch_start", in_the_second_epoch)
    with pytest.raises(SystemExit) as stopped:
        recipe("fit")
    assert stopped.value.code == 2
    output = capsys.readouterr().err.strip().splitlines()[-1]
    assert output.startswith("error: [Errno 28] No space left on device: 'runs/t/version_0/checkpoints/")
    assert output.endswith("'. Free some space, or choose another folder. The earlier file is unchanged.")
    assert torch.load("runs/t/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
