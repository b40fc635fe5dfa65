"""The recipe for classes rates texts as well: a correlation chooses the best checkpoint."""

from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quiet")]


def test_ratings_are_learned_resumed_and_tested_with_the_recipe_for_classes(recipe, capsys):
    lines = Path("data.csv").read_text().splitlines()[1:]
    rated = [f"{line.split(',')[0]},{line.startswith('good') + number / 1000}" for number, line in enumerate(lines)]
    Path("data.csv").write_text("\n".join(["text,label", *rated]))
    recipe("fit", "--data.task", "regression")
    recipe("fit", "--ckpt_path", "runs/t/version_0/checkpoints/last.ckpt", "--trainer.max_epochs", "3")
    assert "test/pearson after" in capsys.readouterr().out
    saved = torch.load("runs/t/version_1/checkpoints/best.ckpt", weights_only=True)
    [score] = [
        (state["monitor"], float(state["current_score"]), float(state["best_model_score"]))
        for name, state in saved["callbacks"].items()
        if name.startswith("ModelCheckpoint") and state["monitor"]
    ]
    assert score[0] == "val/pearson"
    assert score[1] == score[2]
    recipe("test", "--ckpt_path", "runs/t/version_1/checkpoints/best.ckpt")
    assert "test/pearson" in capsys.readouterr().out
