"""The sparse recipe: its smoke run prunes, plots, and exports the zeros; its grid uses its own settings."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from slicefine_pl.cli.grid.plan import read_grid
from slicefine_pl.cli.scaling.model_size import count_parameters

pytestmark = pytest.mark.slow  # whole runs of a recipe

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs"
pytest.importorskip("torchvision")


def test_smoke_run_exports_a_plain_folder_with_the_zeros(tmp_path):
    """The command in the settings' own header, with its output elsewhere."""
    command = [sys.executable, "recipes/sparse.py", "fit", "--config", "recipes/configs/sparse_smoke.yaml"]
    command += ["--trainer.logger.init_args.save_dir", str(tmp_path / "runs")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"test/accuracy after +[\d.]+", done.stdout)
    run = tmp_path / "runs" / "sparse_smoke" / "version_0"
    assert (run / "sparsity.png").read_bytes().startswith(b"\x89PNG")
    tensors = load_file(run / "export" / "model.safetensors")
    matrices = [tensor for tensor in tensors.values() if tensor.ndim > 1 and tensor.numel() >= 4096]
    assert len(matrices) == 1 + 2 * 6  # patches, and in each layer query, key, value, output and two of the MLP
    assert all(int((matrix == 0).sum()) == 0.75 * matrix.numel() for matrix in matrices)


def test_a_width_of_the_grid_at_75_percent_has_about_as_many_non_zeros_as_half_the_width_dense():
    grid = read_grid(CONFIGS / "sparse_grid.yaml")
    [narrow, middle, wide] = (count_parameters(str(ROOT / backbone)) for backbone in grid.backbones)
    assert middle / 4 == pytest.approx(narrow, rel=0.2)
    assert wide / 4 == pytest.approx(middle, rel=0.2)
    rates = {int(name.rpartition("_")[2]): rate for name, rate in grid.backbones.items()}
    assert [width**0.5 * rate for width, rate in rates.items()] == pytest.approx([0.028] * 3, rel=0.02)
    settings = yaml.safe_load((CONFIGS / "sparse.yaml").read_text())
    assert settings["model"]["lr"] == grid.backbones[settings["model"]["backbone"]]


def test_the_recipe_has_a_grid(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["sparse.py", "grid", "--grid", str(tmp_path / "none.yaml")])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path("recipes/sparse.py", run_name="__main__")
    assert stopped.value.code == 2
    assert "none.yaml' cannot be read" in capsys.readouterr().err
