"""The printed code of every image library runs, sees images as evaluation does, and prints the same numbers."""

import ast
import json
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("torchvision")
from PIL import Image, ImageOps
from torch import nn

from slicefine_pl.data import ImageDataModule
from slicefine_pl.inputs import ImageInput
from slicefine_pl.modules import ImageClassifier

NAMES = ["ape", "bee", "cat"]
NORM = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
# 51 pixels round down to a crop of 48 that begins at 1.5, and 96 x 64 pixels make the other margin odd as well
SEEN = {
    "center": ImageInput(48, *NORM, 48 / 51, "bicubic"),
    "transformers": ImageInput(48, *NORM, 48 / 51, "bicubic", rounding="down"),
    "squash": ImageInput(48, *NORM, 1.0, "bilinear", "squash"),
}


class Tiny(nn.Module):
    """A network from none of the supported libraries."""

    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(108, 7), nn.GELU())
        self.last = nn.Linear(7, classes)

    def forward(self, images):
        return self.last(self.body(images))


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """``photo.jpg`` in the current folder, taken with the camera on its side; returned upright."""
    monkeypatch.chdir(tmp_path)
    down, across = np.mgrid[0:64, 0:96] / 96
    waves = [np.sin(30 * down + 9 * across), np.cos(25 * across), np.sin(18 * (down + across))]
    image = Image.fromarray((127 + 110 * np.stack(waves, -1)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save("photo.jpg", exif=exif, quality=95)
    return ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")


def resnet(folder):
    """A random ResNet of transformers, whose processor wants 224 pixels."""
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic", "num_labels": 3}
    ResNetForImageClassification(ResNetConfig(**sizes)).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 224}).save_pretrained(folder)
    return str(folder)


def trained(backbone, seen):
    """A module as training leaves it, with a head that tells images apart."""
    module = ImageClassifier(backbone, label_names=NAMES).eval()
    with torch.no_grad():
        for parameter in module.head():
            parameter.normal_()
    module.input, module.untrained_head = seen, False
    return module


def printed(module, folder, capsys, **scope):
    """Run the lines, and return what they print and what they define."""
    code = module.example(module.export(folder))
    assert "slicefine" not in code
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        exec(code, scope)
    return ast.literal_eval(capsys.readouterr().out.strip().splitlines()[-1]), scope


def predicted(module, processor):
    """Pixels and shares by the data module and ``predict_step``."""
    data = ImageDataModule(processor=processor, predict_images="photo.jpg")
    data.setup("predict")
    [batch] = data.predict_dataloader()
    with torch.no_grad():
        return batch["images"][0], module.predict_step(batch, 0)[0].tolist()


def close(found, expected):
    """Equal but for rounding to 8 bits, which Pillow and torch do at different moments."""
    torch.testing.assert_close(found, expected, rtol=0, atol=3 / 255 / min(NORM[1]))


@pytest.mark.parametrize("kind", ["center", "squash"])
@pytest.mark.parametrize("library", ["timm", "torchvision", "own"])
def test_timm_torchvision_and_modules_of_ones_own(tmp_path, capsys, photo, library, kind):
    backbone = {"timm": "timm/test_efficientnet@random", "torchvision": "torchvision/mobilenet_v3_small@random"}
    module = trained(backbone.get(library, Tiny(3)), SEEN[kind])
    given = {"model": Tiny(3)} if library == "own" else {}
    output, scope = printed(module, tmp_path / "export", capsys, **given)
    pixels, shares = predicted(module, str(tmp_path / "export"))
    assert pixels.shape == (3, 48, 48)
    close(scope["view"](photo), pixels)
    assert output == pytest.approx(dict(zip(NAMES, shares, strict=True)), abs=0.02)


def transparent(photo):
    photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    return photo


def deep(photo):
    """16 bits of gray, which Pillow itself would show as white."""
    return Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)


@pytest.mark.parametrize("kind", [transparent, deep])
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_the_lines_see_the_colors_that_the_data_module_sees(tmp_path, capsys, photo, library, kind):
    """By the name of a .jpg, as the lines name one; Pillow looks at the content."""
    kind(photo).save("photo.jpg", "PNG")
    backbone = resnet(tmp_path / "base") if library == "transformers" else "timm/test_efficientnet@random"
    _, scope = printed(trained(backbone, SEEN["squash"]), tmp_path / "export", capsys)
    pixels, _ = predicted(ImageClassifier(str(tmp_path / "export")).eval(), str(tmp_path / "export"))
    view = scope.get("view") or (lambda image: scope["classify"].image_processor(image)["pixel_values"][0])
    close(torch.as_tensor(view(scope["photo"])), pixels)


@pytest.mark.parametrize("kind", ["transformers", "squash"])
def test_transformers(tmp_path, capsys, photo, kind):
    """Whatever steps the backbone's own processor has: ConvNext's would crop a second time."""
    module = trained(resnet(tmp_path / "base"), SEEN[kind])
    output, scope = printed(module, tmp_path / "export", capsys)
    pixels, shares = predicted(module, str(tmp_path / "export"))
    found = scope["classify"].image_processor(photo, return_tensors="pt")["pixel_values"][0]
    close(found, pixels)
    assert {each["label"]: each["score"] for each in output} == pytest.approx(
        dict(zip(NAMES, shares, strict=True)), abs=0.02
    )


def test_what_training_saw_comes_back_from_checkpoint_and_export(tmp_path, photo):
    for backbone in ("timm/test_efficientnet@random", resnet(tmp_path / "base")):
        module = trained(backbone, SEEN["squash"])
        again = ImageClassifier(str(module.export(tmp_path / "export")))
        assert again.input == SEEN["squash"]
        checkpoint = {}
        module.on_save_checkpoint(checkpoint)
        torch.save(checkpoint, tmp_path / "a.ckpt")
        fresh = ImageClassifier(backbone, label_names=NAMES)
        assert fresh.input is None
        fresh.on_load_checkpoint(torch.load(tmp_path / "a.ckpt", weights_only=True))
        assert fresh.input == SEEN["squash"]
        data = ImageDataModule(processor=str(tmp_path / "a.ckpt"), predict_images="photo.jpg")
        assert data.input == SEEN["squash"]


def test_every_size_and_share_gives_timm_the_same_short_side():
    """timm divides and rounds down, where a share out of two whole numbers may give a hair less."""
    from slicefine_pl.modules.image.exports import timm_settings

    for size in range(16, 300):
        for short in range(size, size + 60):
            seen = ImageInput(size, *NORM, crop=size / short)
            assert seen.resize_size == short
            assert int(size / timm_settings(seen)["crop_pct"]) == short


@pytest.mark.parametrize("library", ["timm", "transformers", "torchvision"])
def test_exports_that_say_nothing_of_training_are_read_as_their_library_reads_them(tmp_path, library):
    """As those of earlier versions are."""
    backbone = {"timm": "timm/test_efficientnet@random", "torchvision": "torchvision/mobilenet_v3_small@random"}
    module = trained(backbone.get(library) or resnet(tmp_path / "base"), SEEN["squash"])
    folder = module.export(tmp_path / "export")
    settings = json.loads((folder / "config.json").read_text())
    del settings["input"]
    (folder / "config.json").write_text(json.dumps(settings | {"input_size": 40}))
    assert ImageClassifier(str(folder)).input is None
    found = ImageDataModule(processor=str(folder), size=None).input
    if library == "torchvision":
        assert found == ImageInput(40, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224 / 256)
    else:
        assert (found.size, found.mean, found.std, found.crop, found.crop_mode) == (48, *NORM, 1.0, "squash")
    assert ImageDataModule(processor=str(folder), size=64, predict_images="a.png").input.size == 64  # nothing known
