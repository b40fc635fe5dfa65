"""Each run has its own folder; a fit that fails before its first step leaves none."""

import threading
from pathlib import Path

import pytest
import torch
from helpers import processes
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from slicefine_pl.cli.recipe.run_folder import RunFolder
from slicefine_pl.modules import TextClassifier

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quiet")]


def folder_of(logger, **settings):
    settings = {"accelerator": "cpu", "devices": 1} | settings
    return RunFolder(Trainer(logger=logger, enable_progress_bar=False, enable_model_summary=False, **settings))


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_runs_that_start_together_get_folders_of_their_own(tmp_path, kind):
    """All of them have looked for the next number before the first one makes its folder."""
    places = [folder_of(kind(tmp_path, name="t")) for _ in range(8)]
    assert {place.path for place in places} == {tmp_path / "t" / "version_0"}
    threads = [threading.Thread(target=place.claim) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {place.path.name for place in places} == {f"version_{number}" for number in range(8)}
    assert all(place.path.is_dir() for place in places)


def test_a_version_that_was_given_is_not_claimed(tmp_path):
    for _ in range(2):
        place = folder_of(CSVLogger(tmp_path, name="t", version="same"))
        place.claim()
        place.release()
        assert place.path == tmp_path / "t" / "same"
    folder_of(False, default_root_dir=tmp_path).claim()
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_passed_and_a_dangling_link_is_an_error(tmp_path):
    (tmp_path / "version_0").touch()
    place = folder_of(CSVLogger(tmp_path, name=""))
    place.claim()
    assert place.path == tmp_path / "version_1"
    (tmp_path / "runs").symlink_to("nowhere")
    with pytest.raises(OSError, match="runs"):
        folder_of(CSVLogger(tmp_path / "runs", name="")).claim()


def test_released_folders_take_the_parents_they_made_and_no_others(tmp_path):
    place = folder_of(CSVLogger(tmp_path / "runs", name="t"))
    place.claim()
    (place.path / "config.yaml").touch()
    place.release()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    place = folder_of(CSVLogger(tmp_path / "runs", name="t"))
    place.claim()
    other = folder_of(CSVLogger(tmp_path / "runs", name="t"))
    other.claim()
    place.release()
    assert [path.name for path in (tmp_path / "runs" / "t").iterdir()] == ["version_1"]
    other.release()
    assert (tmp_path / "runs" / "t").is_dir()  # it was there when this run came


def claimed(folder):
    """The first process claims the folder, and all processes read the same path."""
    place = folder_of(CSVLogger(folder, name="t"), devices=2, strategy="ddp")
    place.claim()
    place._trainer.strategy.setup_environment()
    place._trainer.strategy.barrier()
    return str(place.path)


@pytest.mark.distributed
def test_several_processes_share_one_folder(tmp_path):
    (tmp_path / "t" / "version_0").mkdir(parents=True)
    assert processes.run(claimed, 2, tmp_path) == [str(tmp_path / "t" / "version_1")] * 2
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["version_0", "version_1"]


def test_a_fit_that_fails_before_its_first_step_leaves_nothing(recipe, monkeypatch):
    def broken(self, batch, batch_idx):
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(TextClassifier, "training_step", broken)
        with pytest.raises(RuntimeError, match="a bug"):
            recipe("fit")
    assert not Path("runs").exists()
    recipe("fit", "--trainer.max_epochs", "1")
    assert torch.load("runs/t/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6


def test_a_fit_that_fails_later_keeps_its_folder(recipe, monkeypatch):
    def broken(self):
        raise RuntimeError("a bug")

    monkeypatch.setattr(TextClassifier, "on_validation_epoch_end", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        recipe("fit", "--trainer.num_sanity_val_steps", "0")
    assert Path("runs/t/version_0/config.yaml").is_file()
