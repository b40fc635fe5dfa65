"""Prediction, tests and validation see the pixels of training without a flag, and refuse others: images and videos."""

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("timm")
pytest.importorskip("torchvision")
from lightning.pytorch import Trainer
from PIL import Image

from slicefine_pl.cli import run
from slicefine_pl.data import ImageDataModule, KineticsDataModule
from slicefine_pl.data.video.demo import encode
from slicefine_pl.modules import ImageClassifier, VideoClassifier

CONFIGS = Path(__file__).parents[3] / "recipes" / "configs"
SPLITS = {"train": 4, "val": 2, "test": 2}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A function that runs a command of the image recipe, on photos of 80 x 60 pixels in two classes."""
    for split, count in SPLITS.items():
        for shade, name in ((60, "dark"), (180, "light")):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(0, 70, (60, 80, 3), np.uint8) + np.uint8(shade)
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{number}.png")
    return recipe(tmp_path, monkeypatch, "image", ImageClassifier, ImageDataModule)


@pytest.fixture
def videos(tmp_path, monkeypatch):
    """A function that runs a command of the video recipe, on films of 3 s and 48 x 36 pixels in two classes."""
    for split, count in SPLITS.items():
        for slope, name in ((2, "slow"), (7, "fast")):
            (tmp_path / "films" / split / name).mkdir(parents=True)
            for number in range(count):
                pictures = [np.full((36, 48, 3), 5 * number + slope * place, np.uint8) for place in range(30)]
                encode(tmp_path / "films" / split / name / f"{number}.mp4", pictures, rate=10)
    return recipe(tmp_path, monkeypatch, "kinetics", VideoClassifier, KineticsDataModule)


def recipe(folder, monkeypatch, name, module, data):
    """Run with the recipe's own settings, but for a trainer that writes nothing besides checkpoints."""
    monkeypatch.chdir(folder)
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    checkpoints = [each for each in settings["trainer"]["callbacks"] if each["class_path"].endswith("ModelCheckpoint")]
    quiet = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": ".", "name": "runs"}}
    settings |= {"slicefine": None, "trainer": {**quiet, "logger": logger, "callbacks": checkpoints}}
    Path("recipe.yaml").write_text(yaml.safe_dump(settings))

    def command(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["recipe", *arguments])
        run(module, data, Path("recipe.yaml"))

    return command


def refusal(command, capsys, *arguments: str) -> str:
    """The error message of a command that has to fail."""
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def lines(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if "\t" in line]


EXPORT = ("--model.backbone", "runs/version_0/export")
LAST = ("--ckpt_path", "runs/version_0/checkpoints/last.ckpt")


@pytest.mark.slow
def test_images(images, capsys):
    """The network takes any size, so only the record contains the size of training."""
    own, photos = ("--data.root", "photos"), ("--data.predict_images", "photos/test")
    norm = ("--data.mean", "[0.4,0.5,0.6]", "--data.std", "[0.2,0.3,0.25]")
    images("fit", *own, "--data.size", "48", *norm, "--model.backbone", "timm/test_efficientnet@random")
    capsys.readouterr()
    output = []
    for model in (EXPORT, LAST, (*EXPORT, "--data.size", "48", *norm)):
        images("predict", *model, *photos)
        output.append(lines(capsys))
    assert len(output[0]) == 4
    assert output == [output[0]] * 3

    for kind, model, data in (("test", LAST, own), ("validate", EXPORT, own)):
        images(kind, *model, *data)
        message = refusal(images, capsys, kind, *model, *data, "--data.size", "64")
        assert "data.size=64 contradicts the trained network, which saw data.size=48; leave data.size out" in message
    message = refusal(images, capsys, "predict", *EXPORT, *photos, "--data.std", "[1,1,1]")
    assert "data.std=[1.0, 1.0, 1.0] contradicts the trained network, which saw data.std=[0.2, 0.3, 0.25]" in message

    images("fit", *LAST, *own, "--trainer.max_epochs", "2")
    assert "data.size=64 contradicts" in refusal(images, capsys, "fit", *LAST, *own, "--data.size", "64")
    scratch = ("--data.size", "64", "--score_before", "true", "--trainer.logger.init_args.version", "new")
    capsys.readouterr()
    images("fit", *EXPORT, *own, *scratch)
    assert "test/accuracy before" in capsys.readouterr().out
    images("predict", "--model.backbone", "runs/new/export", *photos, "--data.size", "64")


@pytest.mark.slow
def test_videos(videos, capsys):
    """X3D takes clips of any length and size from about those it was built for."""
    own, films = ("--data.root", "films"), ("--data.predict_path", "films/test")
    clip = ("--data.num_frames", "5", "--data.clip_seconds", "0.8", "--data.crop_size", "36")
    views = ("--data.test_clips", "2", "--data.test_crops", "3")
    videos("fit", *own, *clip, *views, "--model.backbone", "pytorchvideo/x3d_xs")
    capsys.readouterr()
    output = []
    for model in (EXPORT, LAST, (*EXPORT, *clip)):
        videos("predict", *model, *films)
        output.append(lines(capsys))
    assert len(output[0]) == 4
    assert output == [output[0]] * 3

    for kind, model, data in (("test", LAST, own), ("validate", EXPORT, own)):
        videos(kind, *model, *data)
        message = refusal(videos, capsys, kind, *model, *data, "--data.clip_seconds", "1.5")
        assert "data.clip_seconds=1.5 contradicts the trained network, which saw data.clip_seconds=0.8" in message
    for name, value in (("num_frames", 8), ("crop_size", 40)):
        assert f"data.{name}={value} contradicts" in refusal(
            videos, capsys, "predict", *EXPORT, *films, f"--data.{name}", str(value)
        )
    capsys.readouterr()
    videos("predict", *EXPORT, *films, "--data.test_clips", "1")  # views are a choice of each evaluation
    assert lines(capsys) != output[0]


def test_photos_of_ones_own_have_the_size_of_the_backbone_and_flips(images, monkeypatch):
    """The settings for the demo digits, 64 pixels without flips, apply to them only."""
    seen: list[ImageDataModule] = []
    monkeypatch.setattr(Trainer, "_fit_impl", lambda self, model, one, two, data, *_, **__: seen.append(data))
    backbone = ("--model.backbone", "timm/test_efficientnet@random")
    for given, size, flip, area in (
        (("--data.root", "photos"), 160, True, 0.35),
        (("--data.root", "photos", "--data.size", "64", "--data.flip", "false"), 64, False, 0.35),
        ((), 64, False, 0.7),
        (("--data.size", "null", "--data.demo_size", "null"), 160, False, 0.7),
    ):
        images("fit", *given, *backbone)
        look = seen[-1].augmentation
        assert (seen[-1].input.size, look.flip, look.min_area) == (size, flip, area)


def test_videos_of_ones_own_have_the_clips_of_the_backbone(videos, monkeypatch):
    """The settings for the synthetic motions apply to them only."""
    seen: list[KineticsDataModule] = []
    monkeypatch.setattr(Trainer, "_fit_impl", lambda self, model, one, two, data, *_, **__: seen.append(data))
    tiny = CONFIGS / "smoke" / "tiny_videomae"  # 8 frames of 32 pixels
    own = ("--data.root", "films", "--model.backbone")
    for given, clip, views in (
        ((*own, "pytorchvideo/x3d_xs"), (4, 1.6, 160), (4, 3)),
        ((*own, str(tiny)), (8, 8 * 4 / 30, 32), (4, 3)),
        ((*own, str(tiny), "--data.clip_seconds", "2", "--data.test_clips", "1"), (8, 2.0, 32), (1, 3)),
        (("--model.backbone", "pytorchvideo/x3d_xs", "--data.demo_videos", "10"), (16, 2.0, 64), (2, 1)),
    ):
        videos("fit", *given)
        shown = seen[-1].input
        assert (shown.num_frames, shown.clip_seconds, shown.crop_size) == pytest.approx(clip)
        assert (shown.test_clips, shown.test_crops) == views
