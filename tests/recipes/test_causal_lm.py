"""The recipe for causal language models: its smoke run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # whole runs of a recipe

ROOT = Path(__file__).parents[2]


def run(tmp_path, *arguments):
    environment = {
        **os.environ,
        "SLICEFINE_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "recipes/causal_lm.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_smoke_run_and_prediction(tmp_path):
    """The command in the settings' own header, with its output elsewhere; then the export completes prompts."""
    config = ("--config", "recipes/configs/causal_lm_smoke.yaml")
    output = run(tmp_path, "fit", *config, "--trainer.logger.init_args.save_dir", str(tmp_path / "runs"))
    before, after = (float(re.search(rf"test/perplexity {when} +([\d.]+)", output)[1]) for when in ("before", "after"))
    assert before > 10  # of a word out of forty and of the end
    assert after < 2
    folder = tmp_path / "runs" / "causal_lm_smoke" / "version_0"
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2 * 21  # before, and after each of 20 epochs
    assert samples[-1]["generated"] in ("negative", "positive")

    model = ("--model.backbone", str(folder / "export"))
    answer = json.loads(run(tmp_path, "predict", *config, *model, "--data.predict_text", "a film is truly moving"))
    assert answer["prompt"] == "a film is truly moving"
    assert answer["completion"] in ("negative", "positive")
