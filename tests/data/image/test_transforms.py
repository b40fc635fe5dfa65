"""center_crop compared with torchvision's Resize and CenterCrop, and on extreme shapes."""

import resource

import numpy as np
import pytest

pytest.importorskip("torchvision")
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from slicefine_pl.data.image.datasets import FileImages
from slicefine_pl.data.image.preprocessing import ImageInput
from slicefine_pl.data.image.transforms import Augmentation, ImageDataset, center_crop

GRAY = (0.0,) * 3, (1.0,) * 3


def noise(width, height):
    """Values away from 0 and 255, where one order of the two passes clips what the other does not."""
    return Image.fromarray(np.random.default_rng(0).integers(80, 170, (height, width, 3), np.uint8))


@pytest.mark.parametrize("shape", [(24, 20), (500, 375), (375, 500), (224, 224), (33, 70), (640, 481), (1, 40)])
@pytest.mark.parametrize("crop", [0.875, 0.95, 1.0, 1.3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_middle_is_that_of_torchvision(shape, crop, interpolation):
    """Within rounding: torch and Pillow each round to 8 bits after every pass."""
    size, image = 64, noise(*shape)
    given = ImageInput(size, *GRAY, crop, interpolation)
    look = v2.Compose([
        v2.PILToTensor(), v2.Resize(int(size / crop), InterpolationMode(interpolation), antialias=True),
        v2.CenterCrop(size),
    ])  # fmt: skip
    found = v2.CenterCrop(size)(v2.functional.pil_to_tensor(center_crop(image, given)))
    assert (found.int() - look(image).int()).abs().max() <= 2


@pytest.mark.parametrize("shape", [(20_000, 1), (1, 20_000)])
@pytest.mark.parametrize("augmentation", [None, Augmentation(0.35, True)])
def test_a_line_of_pixels_is_not_blown_up(tmp_path, shape, augmentation):
    """Dark on its left or upper half: the middle shows the border. The resized whole would take gigabytes."""
    values = np.zeros((*shape[::-1], 3), np.uint8)
    values.reshape(-1, 3)[10_000:] = 200
    Image.fromarray(values).save(tmp_path / "line.png")
    dataset = ImageDataset(FileImages([str(tmp_path / "line.png")], [0]), ImageInput(224, *GRAY), augmentation)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB, the most so far
    view = dataset[0]["images"]
    assert view.shape == (3, 224, 224)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
    if augmentation is None:
        along = view[0].mean(0 if shape[0] > 1 else 1)
        assert torch.equal(along, along.sort().values)
        assert (along[0] < 0.2, along[-1] > 0.6) == (True, True)
