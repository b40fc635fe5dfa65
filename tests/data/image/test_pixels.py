"""read_rgb: every kind of image becomes the RGB a viewer sees, or is refused by name."""

import numpy as np
import pytest

pytest.importorskip("torchvision")
from PIL import Image

from slicefine_pl.data.image.pixels import UnreadableImageError, read_rgb

RED = (200, 30, 10)


def saved(path, image, **settings):
    image.save(path, **settings)
    return path


def test_every_mode_becomes_rgb(tmp_path):
    red = Image.new("RGB", (5, 3), RED)
    half = Image.new("RGBA", (5, 3), (*RED, 51))  # a fifth opaque, over white
    kinds = {
        "rgb": (red, RED),
        "rgba": (half, tuple(round(255 * 0.8 + value * 0.2) for value in RED)),
        "grey": (Image.new("L", (5, 3), 77), (77, 77, 77)),
        "one_bit": (Image.new("1", (5, 3), 1), (255, 255, 255)),
        "16_bit": (Image.fromarray(np.full((3, 5), 257 * 77, np.uint16)), (77, 77, 77)),
        "grey_alpha": (Image.new("LA", (5, 3), (0, 0)), (255, 255, 255)),
    }
    for name, (image, colour) in kinds.items():
        found = read_rgb(saved(tmp_path / f"{name}.png", image))
        assert (found.mode, found.size) == ("RGB", (5, 3))
        assert np.abs(np.array(found.getpixel((2, 1))) - colour).max() <= 1, name


def test_cmyk_is_converted(tmp_path):
    cmyk = Image.new("RGB", (16, 16), RED).convert("CMYK")
    found = read_rgb(saved(tmp_path / "print.jpg", cmyk, quality=100))
    assert np.abs(np.array(found.getpixel((8, 8))) - RED).max() <= 6  # JPEG rounds


def test_a_transparent_palette_lies_over_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30] * 256)
    assert read_rgb(saved(tmp_path / "a.png", image, transparency=0)).getpixel((1, 1)) == (255, 255, 255)


def test_a_rotated_photo_stands_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert read_rgb(saved(tmp_path / "a.jpg", Image.new("RGB", (8, 4)), exif=exif)).size == (4, 8)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_damaged_files_are_named(tmp_path, suffix):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    whole = saved(tmp_path / f"whole.{suffix}", noise).read_bytes()
    for name, content in {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no image at all"}.items():
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(content)
        with pytest.raises(UnreadableImageError, match=f"{name}.{suffix}' cannot be read"):
            read_rgb(path)
    with pytest.raises(UnreadableImageError, match=r"gone.png' cannot be read .the file does not exist"):
        read_rgb(tmp_path / "gone.png")


def test_floats_without_a_range_are_refused(tmp_path):
    path = saved(tmp_path / "depth.tif", Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(UnreadableImageError, match="floats without a known range; convert it to 8 or 16 bits"):
        read_rgb(path)
