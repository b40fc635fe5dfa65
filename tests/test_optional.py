"""What works without optional packages, and what is said where one is needed."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers.missing_extras import CASES, check_messages

from slicefine_pl.optional import EXTRAS, lazy_names, optional_imports

ROOT = Path(__file__).parents[1]
# An environment without the optional packages: neither their modules nor their metadata are found.
WITHOUT = f"""
import sys, warnings
from importlib import metadata
from importlib.abc import MetaPathFinder

MISSING = {set(EXTRAS)!r}

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

found = metadata.distribution

def distribution(name):
    if name.lower() in MISSING | {{"pillow"}}:
        raise metadata.PackageNotFoundError(name)
    return found(name)

metadata.distribution = distribution
sys.meta_path.insert(0, Missing())
"""
TRAINING = """
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from slicefine_pl import SliceFineCallback, SparsityCallback
from slicefine_pl.callbacks import SliceMap

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 80), nn.ReLU(), nn.Linear(80, 64), nn.ReLU())
        self.head = nn.Linear(64, 3)

    def training_step(self, batch, batch_idx):
        return self.head(self.net(batch)).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(p for p in self.parameters() if p.requires_grad)

data = torch.utils.data.DataLoader(torch.randn(12, 64), 4)
for callbacks in ([SliceFineCallback(rank=4, interval=1), SliceMap()], [SparsityCallback(0.5)]):
    trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=callbacks, logger=CSVLogger("logs"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Net(), data)
    print("steps", trainer.global_step, *(each.message for each in caught if "slicefine-pl" in str(each.message)))
"""


@pytest.fixture
def without_extras(tmp_path):
    """A function that runs Python code where no optional package can be imported."""

    def run(code):
        environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", WITHOUT + code]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)

    return run


@pytest.mark.slow
def test_the_base_install_trains_and_a_picture_that_cannot_be_drawn_is_a_warning(without_extras):
    lines = [line for line in without_extras(TRAINING).stdout.splitlines() if line.startswith("steps")]
    assert len(lines) == 2
    assert all(line.startswith("steps 3") for line in lines)
    for line in lines:
        assert (
            ".png: the package 'matplotlib' is not installed" in line
            or ".png was not written (the package 'matplotlib' is not installed" in line
        )


@pytest.mark.slow
def test_what_needs_an_extra_names_it_in_one_sentence(without_extras):
    check_messages(without_extras(CASES).stderr)


def test_extras_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS.values()) <= set(project["optional-dependencies"])
    every = project["optional-dependencies"]["all"]
    assert every == ["slicefine-pl[text,glue,image,video,scaling]"]  # these bring recipes, which brings plots


def test_packages_of_others_are_not_explained():
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such'"), optional_imports("text"):
        import no_such  # noqa: F401


def test_the_innermost_block_chooses_the_extra():
    def fail():
        raise ModuleNotFoundError(name="transformers")

    with pytest.raises(ModuleNotFoundError, match=r"\[image\]"), optional_imports(), optional_imports("image"):
        fail()


def test_a_lazy_package_knows_its_names_only():
    get = lazy_names(__name__, {"sqrt": "math"})
    with pytest.raises(AttributeError, match="has no attribute 'square'"):
        get("square")
