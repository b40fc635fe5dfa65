"""A recipe over a tiny model and a tiny table, run in this process."""

import logging
import sys
from pathlib import Path

import pytest
import yaml

from slicefine_pl.cli import run
from slicefine_pl.data import TextDataModule
from slicefine_pl.modules import TextClassifier

NOUNS = ("film", "movie", "plot", "acting")


@pytest.fixture
def recipe(tiny_bert, tmp_path, monkeypatch):
    """A function that runs a command of a recipe over a tiny model and a tiny table, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLICEFINE_CACHE", str(tmp_path / "cache"))
    rows = [
        f"{word} {a} {b} {c},{word == 'good'}" for word in ("good", "bad") for a in NOUNS for b in NOUNS for c in NOUNS
    ]
    Path("data.csv").write_text("\n".join(["text,label", *rows]))
    real = yaml.safe_load((Path(__file__).parents[2] / "recipes" / "configs" / "text.yaml").read_text())
    checkpoints = [entry for entry in real["trainer"]["callbacks"] if entry["class_path"].endswith("ModelCheckpoint")]
    settings = {
        "model": {"backbone": str(tiny_bert), "lr": 0.01},
        "data": {"source": "data.csv", "max_length": 16, "batch_size": 16},
        "slicefine": {
            "class_path": "slicefine_pl.callbacks.SliceFineCallback",
            "init_args": {"rank": 4, "interval": 2},
        },
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": "runs", "name": "t"},
            },
            "callbacks": [
                {"class_path": "slicefine_pl.callbacks.LinearProbe"},
                *checkpoints,
            ],
        },
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(settings))

    def command(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["recipe", *arguments])
        run(TextClassifier, TextDataModule, Path("recipe.yaml"))

    return command


@pytest.fixture
def refused(recipe, capsys):
    """A function that runs a command which must fail early, and returns its output."""

    def command(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            recipe(*arguments)
        assert stopped.value.code == 2
        output = capsys.readouterr().err.strip().splitlines()[-1]
        assert output.startswith("error: ")
        return output

    return command


@pytest.fixture
def quiet():
    """Lightning's own messages, off during these tests."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)
