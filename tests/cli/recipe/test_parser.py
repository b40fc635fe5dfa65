"""The help of a recipe names every setting of slices and pruning."""

import inspect
import re
import sys
from pathlib import Path

import pytest

from slicefine_pl.callbacks import SliceFineCallback, SparsityCallback
from slicefine_pl.cli import run
from slicefine_pl.data import TextDataModule
from slicefine_pl.modules import TextClassifier

CONFIG = Path(__file__).parents[3] / "recipes" / "configs" / "text.yaml"


def test_fit_lists_the_settings_of_slices_and_pruning(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["text.py", "fit", "--help"])
    with pytest.raises(SystemExit) as leaving:
        run(TextClassifier, TextDataModule, CONFIG)
    assert leaving.value.code == 0
    flags = set(re.findall(r"^  (--[\w.]+)", capsys.readouterr().out, re.MULTILINE))
    for section, callback in (("slicefine", SliceFineCallback), ("sparsity", SparsityCallback)):
        settings = inspect.signature(callback).parameters
        assert {f"--{section}.{name}" for name in settings} <= flags
