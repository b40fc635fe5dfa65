"""PredictionGrid: the choice of images, their titles and their colors."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from slicefine_pl.callbacks import prediction_grid
from slicefine_pl.callbacks.prediction_grid import MAX_TITLE, PredictionGrid, denormalize, image_title

pytest.importorskip("matplotlib")


class Guesser(LightningModule):
    """Always predicts class 1."""

    label_names = ("no", "yes")

    def test_step(self, batch, batch_idx):
        pass

    def predict_step(self, batch, batch_idx):
        return torch.tensor([[0.2, 0.8]]).expand(len(batch["labels"]), 2)


@pytest.mark.filterwarnings("ignore")
def test_images_are_spread_over_the_test_set_and_written(tmp_path, monkeypatch):
    rows = [{"images": torch.full((3, 4, 4), float(number)), "labels": int(number >= 20)} for number in range(40)]
    seen = []
    draw = prediction_grid.plot_predictions
    monkeypatch.setattr(prediction_grid, "plot_predictions", lambda kept, *rest: (seen.extend(kept), draw(kept, *rest)))
    run = Trainer(default_root_dir=tmp_path, logger=False, callbacks=[PredictionGrid(8)], accelerator="cpu",
                  enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    run.test(Guesser(), DataLoader(rows, batch_size=5), verbose=False)
    assert [int(image.mean()) // 5 for image, _, _ in seen] == list(range(8))  # one of each batch of five
    assert [(truth, guess) for _, truth, guess in seen] == [(0, 1)] * 4 + [(1, 1)] * 4
    assert (tmp_path / "predictions.png").read_bytes().startswith(b"\x89PNG")


def test_normalization_is_undone():
    given = SimpleNamespace(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    color = torch.tensor([0.1, 0.9, 0.35])
    image = ((color - torch.tensor(given.mean)) / torch.tensor(given.std))[:, None, None].expand(3, 2, 2)
    np.testing.assert_allclose(denormalize(image, given), color.expand(2, 2, 3), atol=1e-6)


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="images=0 is not a number of images"):
        PredictionGrid(0)


def test_titles_fit_above_their_images():
    assert image_title("5", "5") == "5"
    assert image_title("5", "4") == "4, not 5"
    assert image_title("ape", "bee") == "bee, not ape"
    long = image_title("staffordshire bull terrier", "german shorthaired pointer").split("\n")
    assert [line[:9] for line in long] == ["german sh", "not staff"]
    assert all(len(line) == MAX_TITLE for line in long)
