"""The video recipe's smoke run is a run."""

import os
import re
import subprocess
import sys
from pathlib import Path

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
    assert re.search(r"test/accuracy after *│ [\d.]+", done.stdout)
    assert (tmp_path / "runs" / "kinetics_smoke" / "version_0" / "export" / "model.safetensors").is_file()
