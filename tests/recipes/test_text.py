"""The text recipe: its settings can be parsed, and its smoke run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow  # whole runs of a recipe

ROOT = Path(__file__).parents[2]


def test_every_setting_names_a_class_that_exists():
    configs = sorted(path for path in (ROOT / "recipes").rglob("*.yaml"))
    assert ROOT / "recipes" / "configs" / "text.yaml" in configs
    for path in configs:
        settings = yaml.safe_load(path.read_text())
        ours = [settings[name] for name in ("slicefine", "sparsity") if name in settings]
        assert ours or "backbones" in settings, path  # a grid does not set classes: its recipe does
        for callback in (*ours, *settings.get("trainer", {}).get("callbacks", [])):
            module, name = callback["class_path"].rsplit(".", 1)
            assert hasattr(__import__(module, fromlist=[name]), name), f"{path}: {callback['class_path']}"


@pytest.mark.parametrize("name", ["text_smoke"])
def test_smoke_run(tmp_path, name):
    """The command in the settings' own header, with its output elsewhere."""
    environment = {
        **os.environ,
        "SLICEFINE_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "recipes/text.py", "fit", "--config", f"recipes/configs/{name}.yaml"]
    command += ["--trainer.logger.init_args.save_dir", str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"💡|LeafSpec|Loading `train_dataloader`|\.py:\d+", done.stdout + done.stderr)
    before, after = (
        float(re.search(rf"test/accuracy {when} +([\d.]+)", done.stdout)[1]) for when in ("before", "after")
    )
    assert before > 0.9  # a linear head can do it
    assert after > 0.8  # and so can SliceFine, where chance is a half
    assert (tmp_path / "runs" / name / "version_0" / "export" / "model.safetensors").is_file()
    assert (tmp_path / "runs" / name / "version_0" / "slices.png").is_file()
