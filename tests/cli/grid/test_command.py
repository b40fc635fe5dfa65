"""The grid of a recipe: its runs, its law, how it continues, and what it refuses."""

import json
import shlex
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from slicefine_pl.cli import run
from slicefine_pl.cli.grid import command as grid_module
from slicefine_pl.cli.grid.finished_runs import seconds_left
from slicefine_pl.cli.grid.plan import Grid, GridPoint
from slicefine_pl.cli.grid.point_cli import PointCLI
from slicefine_pl.cli.main import main
from slicefine_pl.modules import ImageClassifier
from slicefine_pl.scaling import fit_scaling_law

pytestmark = pytest.mark.filterwarnings("ignore")
GRID = {
    "backbones": {"narrow": 0.01, "wide": 0.005},
    "sparsities": [0, 0.5, 0.75],
    "epochs": [1, 2, 3],
    "seeds": [0],
    "folder": "results",
}
VIT = {
    "model_type": "vit",
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
    "initializer_range": 0.1,
}


class Stripes(LightningDataModule):
    """A thousand images of noise, half of them with a bright upper part."""

    label_names = ("dark", "bright")

    def __init__(self, processor: str = "", batch_size: int = 250, seed: int = 0) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed

    def _batches(self, seed: int, images: int = 1000) -> DataLoader:
        random = torch.Generator().manual_seed(seed)
        labels = torch.randint(2, (images,), generator=random)
        pixels = torch.randn(images, 3, 32, 32, generator=random)
        pixels[:, :, :16] += 0.2 * labels[:, None, None, None]
        items = [{"images": image, "labels": label} for image, label in zip(pixels, labels, strict=True)]
        return DataLoader(items, self.batch_size)

    def train_dataloader(self) -> DataLoader:
        return self._batches(self.seed)

    def val_dataloader(self) -> DataLoader:
        return self._batches(100)

    def test_dataloader(self) -> DataLoader:
        return self._batches(200)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A function that runs a command of a recipe with a grid of eighteen runs, in a folder with two tiny backbones."""
    monkeypatch.chdir(tmp_path)
    for name, width in (("narrow", 64), ("wide", 96)):
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps(VIT | {"hidden_size": width, "intermediate_size": 2 * width}))
        Path(name, "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    pruning = {"class_path": "slicefine_pl.callbacks.SparsityCallback", "init_args": {"sparsity": 0.9, "interval": 1}}
    trainer = {"accelerator": "cpu", "enable_model_summary": False}
    Path("recipe.yaml").write_text(yaml.safe_dump({"model": {"lr": 1.0}, "sparsity": pruning, "trainer": trainer}))
    Path("grid.yaml").write_text(yaml.safe_dump(GRID))
    monkeypatch.setattr(grid_module, "fit_scaling_law", partial(fit_scaling_law, starts=2, replicates=3))

    def command(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["recipe", *arguments])
        run(ImageClassifier, Stripes, Path("recipe.yaml"), grid=Path("grid.yaml"))

    return command


@pytest.fixture
def trained(monkeypatch):
    """The list of trained points. Training is a formula; the sixth run raises, as if the process was stopped."""
    points = []

    def formula(self):
        points.append(self._point)
        if len(points) == 6:
            raise KeyboardInterrupt
        size, data = (1 - self._point.sparsity) * len(self._point.backbone) * 1e4, self._point.epochs * 1000
        loss = 100 * (1.5 - self._point.sparsity) / size**0.5 + 50 / data**0.5
        return {**self._point._asdict(), "nonzero_params": int(size), "data": data, "loss": loss, "seconds": 1.0}

    monkeypatch.setattr(PointCLI, "train", formula)
    return points


@pytest.fixture
def refused(recipe, capsys):
    """A function that runs a grid which must be refused, and returns the error message."""

    def command(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            recipe("grid", *arguments)
        assert stopped.value.code == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("error: ")
        return captured.err

    return command


def counted_in(file: Path) -> int:
    """Non-zeros of the matrices that are pruned, all of the rest, and nothing for the table of positions."""
    tensors = {name: tensor for name, tensor in load_file(file).items() if "position_embeddings" not in name}
    pruned = {name for name, tensor in tensors.items() if tensor.ndim > 1 and tensor.numel() >= 4096}
    assert len(pruned) == 7  # patches, query, key, value, output and two of the MLP
    return sum(int((tensor != 0).sum()) if name in pruned else tensor.numel() for name, tensor in tensors.items())


@pytest.mark.slow
def test_a_row_is_what_fit_of_the_same_settings_gives_and_advise_reads_the_law(recipe, capsys):
    recipe("grid")
    output = capsys.readouterr().out
    runs = pd.read_csv("results/runs.csv")
    assert len(runs) == 18
    assert sorted(runs.data.unique()) == [1000, 2000, 3000]
    assert Path("results/law.png").read_bytes().startswith(b"\x89PNG")

    for sparsity, flag in ((0.75, "--sparsity.sparsity=0.75"), (0.0, "--sparsity=null")):
        name = f"of_{sparsity}"
        logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": name}}
        point = ("--model.backbone=wide", "--model.lr=0.005", "--data.seed=0", "--trainer.max_epochs=2", flag)
        recipe("fit", *point, f"--trainer.logger={json.dumps(logger)}", "--trainer.log_every_n_steps=1")
        [row] = runs[(runs.backbone == "wide") & (runs.sparsity == sparsity) & (runs.epochs == 2)].to_dict("records")
        [folder] = Path(name).glob("*/version_0")
        assert row["nonzero_params"] == counted_in(folder / "export" / "model.safetensors")
        losses = pd.read_csv(folder / "metrics.csv")["val/loss"].dropna()
        assert row["loss"] == pytest.approx(losses.iloc[-1], rel=1e-5)
    dense, sparse = (runs[(runs.sparsity == s) & (runs.backbone == "wide")].nonzero_params.iloc[0] for s in (0, 0.75))
    matrices = 96 * 3 * 16 * 16 + 4 * 96 * 96 + 2 * 96 * 192
    assert dense - sparse == 0.75 * matrices

    capsys.readouterr()
    program, *arguments = shlex.split(output.strip().splitlines()[-1])
    assert program == "slicefine"
    assert main(arguments) == 0
    assert "grid results, 18 runs" in capsys.readouterr().out


@pytest.mark.slow
def test_a_grid_that_was_stopped_goes_on_with_what_is_missing(recipe, trained, capsys):
    points = Grid(**GRID).points
    with pytest.raises(KeyboardInterrupt):
        recipe("grid")
    assert len(pd.read_csv("results/runs.csv")) == 5
    recipe("grid")
    assert "5 of 18 runs are finished already" in capsys.readouterr().out
    assert sorted(trained) == sorted([*points, trained[5]])  # the sixth was begun twice
    rows = pd.read_csv("results/runs.csv")
    assert [tuple(row) for row in rows[[*GridPoint._fields]].to_numpy()] == [tuple(point) for point in points]
    before = len(trained)
    recipe("grid")
    assert len(trained) == before

    with pytest.raises(SystemExit):
        recipe("grid", "--model.weight_decay", "0.5")
    output = capsys.readouterr().err
    assert (
        "folder 'results' contains a grid with other settings (weight_decay: 0.01 there, weight_decay: 0.5 now)"
        in output
    )


def test_the_time_left_follows_the_backbone_where_it_is_known():
    points = [GridPoint(name, 1.0, 0.0, epochs, 0) for epochs in (1, 3) for name in ("small", "large")]
    assert seconds_left({points[0]: {"seconds": 2.0}}, points) == 2.0 * (1 + 3 + 3)
    assert seconds_left({points[0]: {"seconds": 2.0}, points[1]: {"seconds": 10.0}}, points) == 2.0 * 3 + 10.0 * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbones": {"narrow": 0.01, "nowhere": 0.01}}, "model='nowhere' cannot be counted"),
        ({"backbones": ["narrow", "wide"]}, "backbones=['narrow', 'wide'] has another form; write {name: 1.0e-3"),
        ({"backbones": {"narrow": -1.0, "wide": 0.01}}, "learning rate=-1"),
        ({"sparsities": [0, 0.5, 1.0]}, "sparsity=1 is not in [0, 1)"),
        ({"sparsities": []}, "sparsities=[] are too few for a law; give 3 or more"),
        ({"epochs": [2, 4, 4]}, "epochs=[2, 4, 4] are too few for a law; give 3 or more"),
        ({"epochs": [0, 2, 4]}, "epochs=0 is out of range"),
        ({"seeds": ["a"]}, "seeds=['a'] has another form"),
        ({"lengths": [1]}, "give exactly backbones, sparsities, epochs, seeds, folder"),
    ],
)
def test_bad_grids_are_refused_before_anything_is_trained(refused, change, message):
    Path("grid.yaml").write_text(yaml.safe_dump(GRID | change))
    assert message in refused()
    assert not Path("results").exists()


def test_what_is_no_grid_and_what_the_grid_sets_itself_are_refused(refused):
    Path("empty.yaml").write_text("")
    assert "grid 'empty.yaml' has nothing; give exactly" in refused("--grid", "empty.yaml")
    assert "grid 'none.yaml' cannot be read" in refused("--grid", "none.yaml")
    assert "--trainer.max_epochs is set by the grid" in refused("--trainer.max_epochs", "3")


ROW = "0.5,1000,1000,2.0,3.0,narrow,0.01,1,0\n"
HEADER = "sparsity,nonzero_params,data,loss,seconds,backbone,lr,epochs,seed\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + ROW.replace("narrow", "huge"), "contains runs of another grid, such as huge, sparsity 0.5, 1 epoch"),
        (HEADER + ROW.replace("narrow", "NA"), "contains runs of another grid, such as NA, sparsity 0.5, 1 epoch"),
        (HEADER + ROW.replace("narrow", ""), "is damaged (line 2 is not a complete run)"),
        (HEADER + ROW.replace("0.01", "0.02"), "contains runs of another grid"),
        (HEADER + ROW + ROW[:20] + "\n", "is damaged (line 3 is not a complete run)"),
        (HEADER + ROW[:-1], "is damaged (line 2 is not a complete run)"),
        (HEADER + ROW.replace("2.0", "nan"), "is damaged (line 2 is not a complete run)"),
        (HEADER[10:] + ROW, "is damaged (its columns are"),
        ("", "is damaged (it is empty"),
        ("\x00\xff\n", "is damaged"),
    ],
)
def test_results_that_are_damaged_or_of_another_grid_are_refused(refused, content, message):
    Path("results").mkdir()
    Path("results/runs.csv").write_bytes(content.encode("latin-1"))
    assert message in refused()
    assert Path("results/runs.csv").read_bytes() == content.encode("latin-1")


def test_a_run_that_diverges_is_reported_and_not_kept(refused, monkeypatch):
    broken = lambda self: {**self._point._asdict(), "loss": float("nan")}
    monkeypatch.setattr(PointCLI, "train", broken)
    assert "the run narrow, sparsity 0, 1 epoch, seed 0 ended with a loss of nan; lower the learning rate" in refused()
    assert not Path("results/runs.csv").exists()
