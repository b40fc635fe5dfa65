"""read_rgb: every kind of image becomes the RGB image that a viewer shows, or is refused."""

import os
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torchvision")
from PIL import Image

from slicefine_pl.data.image import decoding
from slicefine_pl.data.image.decoding import UnreadableImageError, read_rgb, suffixes

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
        "gray": (Image.new("L", (5, 3), 77), (77, 77, 77)),
        "one_bit": (Image.new("1", (5, 3), 1), (255, 255, 255)),
        "16_bit": (Image.fromarray(np.full((3, 5), 257 * 77, np.uint16)), (77, 77, 77)),
        "gray_alpha": (Image.new("LA", (5, 3), (0, 0)), (255, 255, 255)),
    }
    for name, (image, color) in kinds.items():
        found = read_rgb(saved(tmp_path / f"{name}.png", image))
        assert (found.mode, found.size) == ("RGB", (5, 3))
        assert np.abs(np.array(found.getpixel((2, 1))) - color).max() <= 1, name


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


def test_other_suffixes_of_formats_that_decode_count(tmp_path):
    """Pillow saves by the suffix: what it writes, read_rgb reads."""
    assert {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"} <= set(suffixes())
    for suffix in set(suffixes()) - {".pfm", ".mpo", ".rgba"}:  # floats; several frames; transparent
        image = Image.new("1" if suffix == ".pbm" else "L" if suffix in (".pgm", ".bw") else "RGB", (16, 16), "white")
        found = read_rgb(saved(tmp_path / f"a{suffix}", image))
        assert min(low for low, _ in found.getextrema()) > 250, suffix


@pytest.mark.parametrize("name", ["photo.png", "photo.eps"])
def test_no_format_that_needs_another_program_is_opened(tmp_path, monkeypatch, name):
    """Pillow hands an EPS, whatever its name, to Ghostscript; a stand-in of that name would leave a trace."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    head = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / name).write_bytes(head)
    with pytest.raises(UnreadableImageError, match=r"photo.* cannot be read .its content is in none of the formats"):
        read_rgb(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_more_pixels_than_the_limit_are_refused_by_name_or_decoded_at_half_the_size(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 40 * 30)
    stripes = Image.fromarray(np.repeat(np.arange(8, dtype=np.uint8) * 30, 8)[None, :, None].repeat(48, 0).repeat(3, 2))
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(UnreadableImageError, match=r"a.png' cannot be read .64 x 48 pixels, more than 1,200; scale it"):
        read_rgb(saved(tmp_path / "a.png", stripes))
    found = read_rgb(saved(tmp_path / "a.jpg", stripes, quality=100, subsampling=0))
    expected = stripes.resize((32, 24), Image.Resampling.BOX)
    assert found.size == (32, 24)
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).mean() < 3
    with pytest.raises(UnreadableImageError, match=r"b.jpg' cannot be read .80 x 80 pixels"):
        read_rgb(saved(tmp_path / "b.jpg", Image.new("RGB", (80, 80))))
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_bomb_is_refused_by_name_before_it_is_decoded(tmp_path):
    """A header that promises 10^10 pixels; Pillow's own refusal does not name the file."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    with pytest.raises(UnreadableImageError, match=r"bomb.png' cannot be read .100,000 x 100,000 pixels, more than"):
        read_rgb(tmp_path / "bomb.png")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_16_bits(path: Path, values: np.ndarray) -> Path:
    """Pillow writes gray ones only; ``values`` of shape ``(H, W, C)``."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("bits", "share"), [(12, 0.5), (12, 1.0), (16, 0.5), (16, 1.0)])
def test_values_of_12_bits_are_seen_and_said(tmp_path, channels, bits, share):
    """The brightest pixel tells 12 bits from 16; of 12-bit colors Pillow keeps four bits."""
    values = np.zeros((4, 5, channels))
    values[1:] = round(share * (2**bits - 1))
    path = png_of_16_bits(tmp_path / "a.png", values)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = np.asarray(read_rgb(path), int)
    assert found[0].max() == 0
    assert np.abs(found[1:] - 255 * share).max() <= (17 if bits == 12 and channels == 3 else 1)
    assert [bool(re.search("values are all below 4096", str(each.message))) for each in caught] == [True] * (bits == 12)


def test_black_and_transparent_images_of_16_bits(tmp_path):
    assert read_rgb(png_of_16_bits(tmp_path / "black.png", np.zeros((4, 5, 1)))).getextrema() == ((0, 0),) * 3
    values = np.full((4, 5, 4), 65535)
    values[..., :3] = 4095
    with pytest.warns(UserWarning, match="12-bit images, in which white is 4095"):
        assert read_rgb(png_of_16_bits(tmp_path / "a.png", values)).getpixel((1, 1)) == (255, 255, 255)
