"""The video recipe: its smoke run, and its settings for Kinetics on a tiny stand-in."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slicefine_pl.data.video.demo import encode

pytestmark = pytest.mark.slow  # whole runs of a recipe

ROOT = Path(__file__).parents[2]


def test_smoke_run(tmp_path):
    """The command in the settings' own header, with its output elsewhere; it must say that its videos are made up."""
    environment = {
        **os.environ,
        "SLICEFINE_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "recipes/kinetics.py", "fit", "--config", "recipes/configs/kinetics_smoke.yaml"]
    command += ["--trainer.logger.init_args.save_dir", str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "80 SYNTHETIC videos" in done.stderr
    assert re.search(r"test/accuracy after +[\d.]+", done.stdout)
    assert (tmp_path / "runs" / "kinetics_smoke" / "version_0" / "export" / "model.safetensors").is_file()


def test_settings_for_kinetics(tmp_path):
    """All of kinetics_real.yaml but the size: a tiny network, small clips, a short video of each class and split."""
    for place in ("train/run", "train/jump", "val/run", "val/jump", "test/run", "test/jump"):
        (tmp_path / "set" / place).mkdir(parents=True)
        pictures = [np.full((36, 48, 3), 8 * number, np.uint8) for number in range(30)]
        encode(tmp_path / "set" / place / "a.mp4", pictures, rate=10)
    settings = {
        "config": "recipes/configs/kinetics_real.yaml",
        "model.backbone": "recipes/configs/smoke/tiny_videomae",
        "data.root": tmp_path / "set",
        "data.num_frames": 8,
        "data.crop_size": 32,
        "data.num_workers": 1,
        "slicefine.rank": 8,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "trainer.logger.init_args.save_dir": tmp_path / "runs",
    }
    command = [sys.executable, "recipes/kinetics.py", "fit", *(f"--{name}={value}" for name, value in settings.items())]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"test/accuracy after +[\d.]+", done.stdout)
    assert (tmp_path / "runs" / "kinetics_real" / "version_0" / "export" / "model.safetensors").is_file()
