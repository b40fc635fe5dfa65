"""Data modules under a Trainer follow the module that they serve, even if its checkpoint is loaded after ``setup``."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

pytest.importorskip("torchvision")
from PIL import Image

from slicefine_pl.data import ImageDataModule, KineticsDataModule
from slicefine_pl.data.video.demo import encode
from slicefine_pl.inputs import ImageInput, VideoInput
from slicefine_pl.modules import ImageClassifier, VideoClassifier

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
SEEN = ImageInput(12, MEAN, STD, 0.8, "bicubic")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(num_workers|log_every_n_steps|Checkpoint directory|GPU|they are random)"
)


class Recorder(nn.Module):
    """A classifier of images of any size that writes down the sizes."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 2)
        self.sizes = set()

    def forward(self, images):
        self.sizes.add(images.shape[-1])
        return self.last(images.mean((2, 3)))


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val", "test"):
        for shade, name in ((60, "dark"), (180, "light")):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            Image.fromarray(np.full((20, 24, 3), shade, np.uint8)).save(tmp_path / "photos" / split / name / "0.png")
    return str(tmp_path / "photos")


def trainer(folder):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, max_epochs=1, enable_checkpointing=False, **quiet)


def test_a_fit_tells_the_module_and_a_checkpoint_tells_the_data(root, tmp_path):
    first = ImageClassifier(Recorder(), label_names=["dark", "light"])
    run = trainer(tmp_path)
    run.fit(first, datamodule=ImageDataModule(root, size=12, mean=MEAN, std=STD))
    assert first.input == ImageInput(12, MEAN, STD)
    run.save_checkpoint(tmp_path / "a.ckpt")

    data, second = ImageDataModule(root), ImageClassifier(Recorder(), label_names=["dark", "light"])
    trainer(tmp_path).test(second, data, ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert second.model.sizes == {12}
    assert (second.input, data.input) == (first.input, first.input)
    with pytest.raises(ValueError, match=r"data.size=16 contradicts .* data.size=12"):
        trainer(tmp_path).validate(first, ImageDataModule(root, size=16), verbose=False)
    again = trainer(tmp_path)
    again.fit(first, datamodule=ImageDataModule(root, size=16))  # trained again
    assert first.input == ImageInput(16, MEAN, STD)


def test_loaders_of_ones_own_leave_the_input_to_the_user(tmp_path):
    rows = [{"images": torch.rand(3, 8, 8), "labels": torch.tensor(label)} for label in (0, 1)]
    module = ImageClassifier(Recorder(), num_classes=2)
    with pytest.warns(UserWarning, match=r"no input attribute, .* set module.input = ImageInput\("):
        trainer(tmp_path).fit(module, DataLoader(rows))
    module.input = SEEN
    trainer(tmp_path).fit(module, DataLoader(rows))
    assert module.input == SEEN


def test_views_of_videos_follow_a_checkpoint_that_comes_after_setup(tmp_path):
    for split in ("train", "val", "test"):
        for shade, name in ((60, "dark"), (180, "light")):
            (tmp_path / "films" / split / name).mkdir(parents=True)
            pictures = [np.full((36, 48, 3), shade + number, np.uint8) for number in range(12)]
            encode(tmp_path / "films" / split / name / "0.mp4", pictures, rate=10)
    module = VideoClassifier("pytorchvideo/x3d_xs", label_names=["dark", "light"], num_frames=4, crop_size=32)
    module.untrained_head = False
    data = KineticsDataModule(str(tmp_path / "films"))
    data.setup("test")
    assert data.input == VideoInput(16, 2.0, 224, 4, 3)
    module.on_load_checkpoint({"input": vars(VideoInput(4, 0.8, 32, 2, 1))})
    run = trainer(tmp_path)
    run.strategy.connect(module)
    data.trainer = run
    batch = next(iter(data.test_dataloader()))
    assert batch["video"].shape == (2, 2, 3, 4, 32, 32)  # two videos of two views each
