"""Video data modules: batches, resumption, unreadable files on two processes, and settings that are refused."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import films
from helpers.recorder import Recorder
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from slicefine_pl.data import KineticsDataModule, VideoDataModule
from slicefine_pl.data.video.decoding import UnreadableVideo

SETTINGS = {"num_frames": 4, "clip_seconds": 0.8, "crop_size": 16, "batch_size": 2, "test_clips": 2, "test_crops": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three classes, 7 + 3 + 3 videos."""
    folder = tmp_path_factory.mktemp("kinetics")
    for split, count in {"train": 7, "val": 3, "test": 3}.items():
        for number in range(count):
            place = folder / split / ("jump", "run", "swim")[number % 3]
            place.mkdir(parents=True, exist_ok=True)
            films.film(place / f"{number}.mp4", 12)
    return folder


def trainer(folder: Path, **settings) -> Trainer:
    every_step = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(max_epochs=2, callbacks=[every_step], **quiet, **settings)


def test_batches(root):
    data = KineticsDataModule(str(root), **SETTINGS)
    assert (data.label_names, data.num_classes) == (["jump", "run", "swim"], 3)
    data.prepare_data()
    data.setup("fit")
    [*full, last] = sorted(data.train_dataloader(), key=lambda batch: -len(batch["labels"]))
    assert [batch["video"].shape for batch in full] == [(2, 1, 3, 4, 16, 16)] * 3
    assert last["video"].shape[0] == 1
    assert sorted(torch.cat([batch["labels"] for batch in [*full, last]]).tolist()) == [0, 0, 0, 1, 1, 2, 2]
    assert [batch["video"].shape for batch in data.test_dataloader()] == [(1, 6, 3, 4, 16, 16)] * 3
    assert [batch["labels"].tolist() for batch in data.test_dataloader()] == [[0], [1], [2]]


@pytest.mark.parametrize(("kind", "views"), [(VideoDataModule, (1, 1)), (KineticsDataModule, (4, 3))])
def test_kinetics_differs_in_the_views_of_a_test(root, kind, views):
    spec = kind(str(root)).input
    assert (spec.test_clips, spec.test_crops) == views
    assert (spec.num_frames, spec.clip_seconds, spec.crop_size) == (16, 2.0, 224)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("stop", "workers"), [(3, 0), (4, 2), (6, 0)], ids=["inside", "epoch end", "second epoch"])
def test_a_resumed_run_sees_the_clips_of_an_uninterrupted_one(root, tmp_path, stop, workers):
    """Same videos, same clips, same crops, bit for bit."""
    whole = Recorder("video")
    trainer(tmp_path).fit(whole, datamodule=KineticsDataModule(str(root), **SETTINGS, num_workers=workers))
    rest = Recorder("video")
    data = KineticsDataModule(str(root), **SETTINGS, num_workers=workers)
    trainer(tmp_path / "rest").fit(rest, datamodule=data, ckpt_path=tmp_path / f"step={stop}.ckpt")
    assert len(whole.seen) == 8
    assert len(rest.seen) == 8 - stop
    assert all(torch.equal(one, two) for one, two in zip(whole.seen[stop:], rest.seen, strict=True))


SCRIPT = """
import sys
from pathlib import Path

sys.path[:0] = [{here!r}, {tests!r}]
import test_datamodule as t
from helpers.recorder import Recorder


class Count(Recorder):
    def on_train_end(self):
        Path({folder!r}, f"rank{{self.trainer.global_rank}}").write_text(str([len(self.seen), *map(len, self.seen)]))


if __name__ == "__main__":
    data = t.KineticsDataModule({root!r}, **t.SETTINGS, num_workers=1)
    run = t.Trainer(max_epochs=2, accelerator="cpu", strategy="ddp", devices=2, logger=False, enable_progress_bar=False,
                    default_root_dir={folder!r}, enable_checkpointing=False)
    run.fit(Count("video"), datamodule=data)
"""


@pytest.mark.slow
def test_two_processes_with_broken_videos_finish_with_equal_batches_and_one_list(tmp_path):
    """Two of 40 videos, 5 %, cannot be read."""
    root = tmp_path / "set"
    for split, count in {"train": 38, "val": 2}.items():
        for number in range(count):
            place = root / split / ("jump", "run")[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            films.film(place / f"{number}.mp4", 6)
    bad = [root / "train" / "run" / "text.mp4", root / "train" / "jump" / "cut.mp4"]
    bad[0].write_bytes(b"no video")
    bad[1].write_bytes((root / "train" / "jump" / "0.mp4").read_bytes()[:200])
    script = tmp_path / "run.py"
    script.write_text(
        SCRIPT.format(
            here=str(Path(__file__).parent), tests=str(Path(__file__).parents[2]), folder=str(tmp_path), root=str(root)
        )
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "rank0").read_text() == (tmp_path / "rank1").read_text() == str([20, *[2] * 20])
    assert (tmp_path / "broken_videos.txt").read_text().split() == sorted(map(str, bad))
    assert "2 videos could not be read, and others took their place" in done.stderr


class Dying(KineticsDataModule):
    """Its workers are killed, as by the kernel when memory runs out."""

    def setup(self, stage):
        super().setup(stage)
        self._datasets["train"]._view = _die


def _die(path, rng):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_dies(root, tmp_path):
    with pytest.raises(RuntimeError, match=r"process that loads data died .* lower num_workers=1 or batch_size=2"):
        trainer(tmp_path).fit(Recorder("video"), datamodule=Dying(str(root), **SETTINGS, num_workers=1))


def listed(root: Path, **splits: str) -> Path:
    """Lists of videos, all of them one file; ``run`` is a class."""
    root.mkdir(exist_ok=True)
    films.film(root / "a.mp4", 12)
    for split, names in splits.items():
        (root / f"{split}.csv").write_text("".join(f"a.mp4 {name}\n" for name in names.split()))
    return root


def test_class_folders_that_differ_between_splits(tmp_path):
    for place in ("train/run", "train/jump", "val/run"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.mp4").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"has the class 'jump' in train but not in val \(1 such in all\)"):
        KineticsDataModule(str(tmp_path), **SETTINGS).setup("fit")


@pytest.mark.filterwarnings("ignore:.* has no test split")
def test_listed_classes_without_training(tmp_path):
    root = str(listed(tmp_path, train="run jump", val="run fly"))
    with pytest.raises(ValueError, match=r"val.csv', line 2, has the label 'fly', which is not one of the 2 classes"):
        KineticsDataModule(root, **SETTINGS).setup("fit")
    with pytest.raises(ValueError, match=r"class 'fly' has no training example in .*train"):
        KineticsDataModule(root, **SETTINGS, label_names=["run", "jump", "fly"]).setup("fit")


def numbered(tmp_path, names):
    """A data module of two videos with the labels 1 and 0, and names for them."""
    (tmp_path / "a.mp4").write_bytes(b"x")
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.csv").write_text("a.mp4 1\na.mp4 0\n")
    return KineticsDataModule(str(tmp_path), **SETTINGS, label_names=names)


@pytest.mark.parametrize(("names", "indices"), [(["no", "yes"], [1, 0]), (["1", "0"], [0, 1]), (None, [1, 0])])
def test_names_of_numbered_classes(tmp_path, names, indices):
    """Labels count the names that are given; names that are numbers are the labels themselves."""
    data = numbered(tmp_path, names)
    data.setup("fit")
    dataset = data._datasets["train"]
    assert [int(dataset._labels[row]) for row in range(2)] == indices


def test_names_of_other_numbers(tmp_path):
    with pytest.raises(ValueError, match=r"line 1, has the label '1', which is not one of the 2 classes '01', '0'"):
        numbered(tmp_path, ["01", "0"]).setup("fit")


def test_class_folders_with_numbers_are_in_order(tmp_path):
    for place in ("10", "9", "100"):
        for split in ("train", "val", "test"):
            (tmp_path / split / place).mkdir(parents=True)
            (tmp_path / split / place / "a.mp4").write_bytes(b"x")
    assert KineticsDataModule(str(tmp_path), **SETTINGS).label_names == ["9", "10", "100"]


def test_listed_classes_that_are_not_scored_are_reported_in_one_warning(tmp_path):
    """A list may be a small part of a set."""
    root = listed(tmp_path, train="run jump fly", val="run", test="run jump")
    with pytest.warns(UserWarning, match="scores do not include") as caught:
        KineticsDataModule(str(root), **SETTINGS).setup("fit")
    [output] = caught
    assert str(output.message) == (
        f"data.root={str(root)!r} has no video of 2 of the 3 classes in val, such as 'fly', and of 1 of the 3 classes "
        "in test, such as 'fly'; scores do not include them."
    )
    listed(tmp_path, val="run jump fly", test="fly jump run")
    KineticsDataModule(str(root), **SETTINGS).setup("fit")  # a warning is an error here


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 0}, "num_frames=0 is not a number of frames"),
        ({"fold": 4}, "fold=4 is unknown; choose one of 1, 2, 3"),
        ({"clip_seconds": 0.0}, "clip_seconds=0.0 is not a duration"),
        ({"demo_videos": 3}, "demo_videos=3 leaves a split without videos"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        KineticsDataModule(**settings)


def test_predicting(root, tmp_path):
    data = KineticsDataModule(**SETTINGS, predict_path=str(root / "test"))
    for hidden in (".trash/a.mp4", "run/._1.mp4"):  # written by file browsers
        (root / "test" / hidden).parent.mkdir(exist_ok=True)
        (root / "test" / hidden).write_bytes(b"x")
    assert (data.label_names, data.num_classes) == (None, None)
    with pytest.warns(UserWarning, match=r"predict_path=.* ignored: 2\n  hidden .*: 2 \('.trash/a.mp4', 'run/._1.mp4'"):
        data.setup("predict")
    assert [Path(name).name for name in data.predict_names] == ["0.mp4", "1.mp4", "2.mp4"]
    assert [batch["video"].shape for batch in data.predict_dataloader()] == [(1, 6, 3, 4, 16, 16)] * 3
    with pytest.raises(FileNotFoundError, match="is neither a file nor a folder with videos"):
        _ = KineticsDataModule(**SETTINGS, predict_path=str(tmp_path)).predict_names
    with pytest.raises(ValueError, match="nothing to predict"):
        _ = KineticsDataModule(**SETTINGS).predict_names


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_video_is_reported_as_it_was_raised(root, tmp_path, workers):
    """torch's own loader makes it a RuntimeError that begins with 'Caught UnreadableVideo in DataLoader worker'."""
    films.broken(tmp_path)
    data = KineticsDataModule(**SETTINGS, predict_path=str(tmp_path / "text.mp4"), num_workers=workers)
    data.setup("predict")
    with pytest.raises(UnreadableVideo) as caught:
        list(data.predict_dataloader())
    assert re.fullmatch(r"video '.*text.mp4' cannot be read: Invalid data [^;\n]*; replace or remove the file\.",
                        str(caught.value))  # fmt: skip
    if workers:
        assert "in __getitem__" in str(caught.value.__cause__)


@pytest.mark.filterwarnings("ignore")  # each broken video is named in one
@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_but_broken_videos_are_reported_as_they_were_raised(tmp_path, workers):
    for name in ("run", "jump"):
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "a.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"\A20 videos in a row cannot be read, such as [^\n]* are complete\.\Z"):
        trainer(tmp_path).fit(
            Recorder("video"), datamodule=KineticsDataModule(str(tmp_path), **SETTINGS, num_workers=workers)
        )


CODECS = {"mov": "libx264", "M4V": "libx264", "3gp": "libx264", "flv": "flv1", "wmv": "wmv2", "webm": "libvpx"}


@pytest.mark.parametrize("suffix", CODECS)
def test_files_of_other_containers_are_used(tmp_path, suffix):
    for split in ("train", "val", "test"):
        for name in ("run", "jump"):
            (tmp_path / split / name).mkdir(parents=True)
            films.film(tmp_path / split / name / f"a.{suffix}", 12, codec=CODECS[suffix])
    data = KineticsDataModule(str(tmp_path), **SETTINGS)
    data.setup("fit")
    [batch] = data.val_dataloader()
    assert batch["labels"].tolist() == [0, 1]
    assert batch["video"].float().std() > 1  # two grays


def test_without_a_test_split_there_is_no_test(tmp_path):
    for split in ("train", "val"):
        for name in ("run", "jump"):
            (tmp_path / split / name).mkdir(parents=True)
            films.film(tmp_path / split / name / "a.mp4", 12)
    data = KineticsDataModule(str(tmp_path), **SETTINGS)
    with pytest.warns(UserWarning, match=r"has no test split, .* only that of val.*: --data.split 0.7/0.1/0.2"):
        data.setup("fit")
    assert not data.has_test
    with pytest.raises(ValueError, match="has no test split"):
        data.test_dataloader()


def test_a_missing_decoder_is_reported_before_the_first_batch(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match=r"'av' is not installed; run: pip install"):
        KineticsDataModule(str(root)).setup("fit")
