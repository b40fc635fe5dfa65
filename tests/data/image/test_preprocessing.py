"""The input of a backbone, compared with the transforms of its own library."""

import numpy as np
import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("torchvision")
import transformers
from PIL import Image

from slicefine_pl.data import ImageDataModule
from slicefine_pl.data.image.preprocessing import image_input
from slicefine_pl.inputs import ImageInput

PROCESSORS = {
    "ViT": (transformers.ViTImageProcessor, {"size": {"height": 24, "width": 24}}, "squash", 1.0),
    "CLIP": (
        transformers.CLIPImageProcessor,
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 24, "width": 24}},
        "center",
        0.75,
    ),
    "ConvNext": (transformers.ConvNextImageProcessor, {"size": {"shortest_edge": 28}}, "center", 0.875),
    "EfficientNet": (
        transformers.EfficientNetImageProcessor,
        {"size": {"height": 24, "width": 24}, "resample": 2, "include_top": True},
        "squash",
        1.0,
    ),
    "without mean": (
        transformers.ViTImageProcessor,
        {"size": {"height": 24, "width": 24}, "do_normalize": False},
        "squash",
        1.0,
    ),
}


@pytest.fixture
def photo(tmp_path):
    down, across = np.mgrid[0:60, 0:91] / 91
    waves = [np.sin(20 * down + 9 * across), np.cos(15 * across), np.sin(12 * (down + across))]
    Image.fromarray((127 + 110 * np.stack(waves, -1)).astype(np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("name", PROCESSORS)
def test_transformers(tmp_path, photo, name):
    """The pixels of predictions are those of the processor itself, but for rounding to 8 bits."""
    kind, settings, mode, crop = PROCESSORS[name]
    processor = kind(**settings)
    processor.save_pretrained(tmp_path / "net")
    transformers.ViTConfig().save_pretrained(tmp_path / "net")
    found = image_input(str(tmp_path / "net"))
    assert (found.crop_mode, found.rounding, found.crop) == (mode, "down", pytest.approx(crop))
    data = ImageDataModule(processor=str(tmp_path / "net"), predict_images=str(photo))
    data.setup("predict")
    [batch] = data.predict_dataloader()
    expected = torch.as_tensor(processor(Image.open(photo), return_tensors="np")["pixel_values"])
    torch.testing.assert_close(batch["images"], expected, rtol=0, atol=3 / 255 / min(found.std))


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (transformers.MobileViTImageProcessor(), "swaps red and blue"),
        (transformers.ViTImageProcessor(size={"height": 24, "width": 32}), "images here are square"),
    ],
)
def test_what_images_here_cannot_be_is_refused(tmp_path, processor, message):
    processor.save_pretrained(tmp_path)
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"does not specify .*{message}.*; give all three: data.size, data.mean and"):
        image_input(str(tmp_path))


def test_timm_and_torchvision():
    assert image_input("timm/tf_efficientnet_lite0").crop_mode == "center"
    found = image_input("timm/convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384")  # says squash
    assert (found.size, found.crop_mode, found.interpolation) == (384, "squash", "bicubic")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert image_input("torchvision/resnet18") == ImageInput(224, mean, std, 224 / 256)
