"""A run that resumes in another folder ends with the best checkpoint of an uninterrupted run."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.sliced_run import SETTINGS, Module, loader, trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from slicefine_pl import SliceFineCallback
from slicefine_pl.callbacks.support.best_checkpoint import CopyBestCheckpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*is not empty")
SCORES = [0.3, 0.9, 0.5, 0.7, 0.4, 0.8]  # by epoch


class Scored(Module):
    """A module with given validation scores and three steps per epoch."""

    def on_validation_epoch_end(self):
        self.log("score", SCORES[self.current_epoch])


def fit(folder, epochs, resume=None, **saver):
    settings = {"monitor": "score", "mode": "max", "filename": "best", "enable_version_counter": False} | saver
    best = ModelCheckpoint(folder, **settings)
    last = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    callbacks = [SliceFineCallback(**SETTINGS, interval=2), CopyBestCheckpoint(), best, last]
    run = trainer(*callbacks, enable_checkpointing=True, max_epochs=epochs, max_steps=-1)
    torch.manual_seed(0)
    run.fit(Scored(), loader(3), loader(1), ckpt_path=resume and str(resume))
    return best


def ranking(saver):
    """Return names, scores and steps of a saver's best checkpoints, and the best of them."""
    found = {}
    for path, score in saver.best_k_models.items():
        found[Path(path).name] = (round(float(score), 4), torch.load(path, weights_only=True)["global_step"])
        assert Path(path).parent == Path(saver.dirpath)
    return found, Path(saver.best_model_path).name, round(float(saver.best_model_score), 4)


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "saver",
    [
        {},
        {"mode": "min"},
        {"save_top_k": 2, "filename": "{step}"},
        {"save_top_k": 3, "mode": "min", "filename": "{epoch}/{step}", "auto_insert_metric_name": False},
        {"save_weights_only": True},
    ],
)
def test_a_resumed_run_ranks_like_an_uninterrupted_run(tmp_path, saver, stop):
    whole = fit(tmp_path / "whole", len(SCORES), **saver)
    fit(tmp_path / "first", stop, **saver)
    rest = fit(tmp_path / "rest", len(SCORES), tmp_path / "first" / "last.ckpt", **saver)
    if "/" in saver.get("filename", ""):
        assert {Path(path).relative_to(rest.dirpath) for path in rest.best_k_models} == {
            Path(path).relative_to(whole.dirpath) for path in whole.best_k_models
        }
    else:
        assert ranking(rest) == ranking(whole)
    one, other = (torch.load(each.best_model_path, weights_only=True)["state_dict"] for each in (whole, rest))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_may_resume_twice_and_from_a_moved_folder(tmp_path):
    fit(tmp_path / "first", 2)
    fit(tmp_path / "second", 3, tmp_path / "first" / "last.ckpt")
    shutil.rmtree(tmp_path / "first")
    (tmp_path / "second").rename(tmp_path / "moved")
    third = fit(tmp_path / "third", 4, tmp_path / "moved" / "last.ckpt")
    assert ranking(third) == ({"best.ckpt": (0.9, 6)}, "best.ckpt", 0.9)


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
@pytest.mark.parametrize("keep", [1, -1])
def test_a_run_that_stops_before_the_first_score_has_no_best_to_copy(tmp_path, keep):
    fit(tmp_path / "whole", 2, save_top_k=keep)
    early = {"every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}"}
    saver = ModelCheckpoint(tmp_path / "first", monitor="score", mode="max", filename="best", save_top_k=keep)
    steps = ModelCheckpoint(tmp_path / "first", **early)
    run = trainer(
        SliceFineCallback(**SETTINGS, interval=2), saver, steps, enable_checkpointing=True, max_epochs=1, max_steps=2
    )
    run.fit(Scored(), loader(3), loader(1))
    saved = torch.load(tmp_path / "first" / "step=1.ckpt", weights_only=True)
    assert any(state.get("best_model_path") == "" for key, state in saved["callbacks"].items() if "'score'" in key)
    best = fit(tmp_path / "rest", 2, tmp_path / "first" / "step=1.ckpt", save_top_k=keep)
    assert ranking(best)[1:] == ("best.ckpt", 0.9)


def test_a_run_may_resume_in_its_own_folder(tmp_path, monkeypatch):
    """Lightning compares the paths as text, so a relative path would count as another folder."""
    fit(tmp_path / "run", 2)
    saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    monkeypatch.chdir(tmp_path)
    for key, state in saved["callbacks"].items():
        if "'score'" in key:
            state["dirpath"] = "run"
            scores = state["best_k_models"].values()
            state["best_k_models"] = dict(zip(["run/best.ckpt"], scores, strict=False))
            state["best_model_path"] = state["kth_best_model_path"] = "run/best.ckpt"
    torch.save(saved, "run/last.ckpt")
    assert ranking(fit(tmp_path / "run", 3, "run/last.ckpt"))[0] == {"best.ckpt": (0.9, 6)}


def test_a_missing_or_overwritten_best_checkpoint_is_reported(tmp_path):
    fit(tmp_path / "first", 3)
    shutil.copy(tmp_path / "first" / "last.ckpt", tmp_path / "third_epoch.ckpt")
    (tmp_path / "first" / "best.ckpt").unlink()
    with pytest.warns(UserWarning, match=r"best checkpoint so far \(score=0\.9000\) is not at .*first/best\.ckpt'"):
        rest = fit(tmp_path / "rest", 5, tmp_path / "third_epoch.ckpt")
    assert ranking(rest) == ({"best.ckpt": (0.7, 12)}, "best.ckpt", 0.7)
    shutil.copy(tmp_path / "rest" / "best.ckpt", tmp_path / "first" / "best.ckpt")  # of a later step with another score
    with pytest.warns(UserWarning, match="is not at"):
        fit(tmp_path / "again", 4, tmp_path / "third_epoch.ckpt")


def test_testing_the_copy_warns_of_no_other_folder(tmp_path, recwarn):
    fit(tmp_path / "first", 2)
    rest = fit(tmp_path / "rest", 3, tmp_path / "first" / "last.ckpt")
    callbacks = [CopyBestCheckpoint(), ModelCheckpoint(tmp_path / "elsewhere", monitor="score", mode="max")]
    trainer(*callbacks, enable_checkpointing=True).test(Scored(), loader(1), ckpt_path=rest.best_model_path)
    assert not [str(each.message) for each in recwarn if "dirpath has changed" in str(each.message)]
