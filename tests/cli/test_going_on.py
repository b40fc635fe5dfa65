"""A fit that stops and goes on in a new folder ends as one that never stopped: table, best checkpoint, export."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from slicefine_pl.modules import TextClassifier

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quiet")]


@pytest.fixture
def falling(monkeypatch):
    """The score that chooses the best checkpoint falls from epoch to epoch, so that the first stays the best."""
    Path("recipe.yaml").write_text(Path("recipe.yaml").read_text().replace("val/accuracy", "val/chosen"))
    log = lambda self: self.log("val/chosen", 1.0 - self.current_epoch / 10)
    monkeypatch.setattr(TextClassifier, "on_validation_epoch_end", log)


def table(told):
    """Rows of the closing table, without seconds and paths."""
    rows = [line.split("│")[1:3] for line in told.splitlines() if line.startswith("│")]
    return {name.strip(): re.sub(r"\d+ s\b", "", value).strip() for name, value in rows
            if "checkpoint" not in name and "exported" not in name}  # fmt: skip


def test_the_best_of_the_first_part_is_tested_exported_and_reported(recipe, capsys, falling, monkeypatch):
    monkeypatch.setattr(TextClassifier, "_check_head", lambda *_: None)  # a score of a random head will do here
    flags = ["--model.decay", "constant", "--model.warmup", "0", "--score_before", "true"]

    def fit(version, *more):
        capsys.readouterr()
        recipe("fit", "--trainer.logger.init_args.version", version, *flags, *more)
        return table(capsys.readouterr().out)

    whole = fit("whole")
    assert "test/accuracy before" in whole
    assert "12 steps" in whole["training"]
    fit("first", "--trainer.max_epochs", "1")
    assert fit("rest", "--ckpt_path", "runs/t/first/checkpoints/last.ckpt") == whole
    one, other = (Path("runs/t") / version for version in ("whole", "rest"))
    exports = [load_file(folder / "export" / "model.safetensors") for folder in (one, other)]
    saved = [torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True) for folder in (one, other)]
    assert saved[0]["global_step"] == saved[1]["global_step"] == 6
    for pair in (exports, [each["state_dict"] for each in saved]):
        assert all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0])
