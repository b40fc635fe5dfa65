"""Decode an image file to the RGB image that a viewer shows.

Grayscale, palette, transparent, CMYK, one-bit, 12-bit and 16-bit images become 8-bit RGB, in the right orientation.
Images without a known range of values are refused. Only formats that Pillow itself decodes are opened; for others, such
as EPS, it would run programs of the system.

Every export of an image network contains a copy of this file, so it imports only Pillow and numpy.
"""

import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from slicefine_pl.optional import optional_imports

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "TGA", "QOI", "SGI", "PCX")
OPTIONAL = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # Pillow can be built without these
MAX_PIXELS = 89_478_485  # of a decoded image: where Pillow warns of decompression bombs; 358 MB as RGB
_OPENING = threading.Lock()  # Pillow's limit is a global variable


class UnreadableImageError(ValueError):
    """An image cannot be decoded. The message contains its name and the reason."""


@cache
def formats() -> list[str]:
    """Return the supported formats that this build of Pillow can decode."""
    from PIL import Image, features

    Image.init()
    known = [each for each in FORMATS if each in Image.OPEN]
    return [each for each in known if each not in OPTIONAL or features.check(OPTIONAL[each])]


@cache
def suffixes() -> tuple[str, ...]:
    """Return the suffixes of these formats, in lower case, with the dot."""
    with optional_imports("image"):
        from PIL import Image

    known = {*formats(), "MPO"}  # several JPEG images in one file; the JPEG reader opens it
    return tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in known))


def read_rgb(path: str | Path) -> "Image":
    """Read a file as an RGB image. Of several frames, the first is read.

    An image with more than ``MAX_PIXELS`` is refused. A JPEG with up to four times as many is decoded at half its
    height and width.

    Raises:
        UnreadableImageError: The file is missing, damaged, not an image, too large, or has no known range of values.
    """
    from PIL import ImageOps

    def read() -> "Image":
        with _opened(path) as image:
            _limit(image)
            deep = ";16" in str(image.tile)  # Pillow keeps 8 bits of 16-bit colors, and all 16 bits of grayscale
            ImageOps.exif_transpose(image, in_place=True)
            return as_rgb(_brightened(image) if deep and image.mode in ("RGB", "RGBA") else image)

    return decoded(read, f"image {str(path)!r}")


def decoded(read: Callable[[], "Image"], place: str) -> "Image":
    """Return ``read()``, and turn all errors of decoding into one type.

    Args:
        read: Function that decodes an image.
        place: How the message refers to the image.

    Raises:
        UnreadableImageError: Decoding failed.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        return read()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        if isinstance(error, FileNotFoundError):
            reason = "the file does not exist"
        elif isinstance(error, UnidentifiedImageError):
            reason = f"its content is in none of the formats {', '.join(formats())}"
        else:
            reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(f"{place} cannot be read ({reason})") from error


def as_rgb(image: "Image") -> "Image":
    """Convert any image to 8-bit RGB. Transparent images are drawn on white; 16-bit values are divided by 257.

    A 16-bit grayscale image whose values are all below 4096 is treated as a 12-bit image, with a warning.

    Raises:
        ValueError: The pixels have no known range.
    """
    from PIL import Image

    image.load()  # decodes the whole image while the file is open
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 1 << 16:
            raise ValueError(f"mode {image.mode!r} with values beyond 16 bits; convert it to 8 or 16 bits")
        if twelve_bits := 0 < values.max() < 1 << 12:
            _warn_twelve_bits()
        return Image.fromarray((values // (16 if twelve_bits else 257)).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("mode 'F', pixels are floats without a known range; convert it to 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        with_alpha = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(with_alpha, (0, 0), with_alpha)
        return white
    return image.convert("RGB")


@contextmanager
def _opened(path: str | Path) -> "Iterator[ImageFile]":
    """Open a file without Pillow's own size check, whose message does not contain the path."""
    from PIL import Image

    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(path, formats=formats())
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        yield image


def _limit(image: "ImageFile") -> None:
    """Decode a large JPEG at half its height and width, and refuse other large images.

    Raises:
        ValueError: The image has too many pixels.
    """
    pixels = image.width * image.height
    if MAX_PIXELS < pixels <= 4 * MAX_PIXELS and image.format in ("JPEG", "MPO"):
        image.draft(None, (image.width // 2, image.height // 2))
    elif pixels > MAX_PIXELS:
        raise ValueError(f"{image.width:,} x {image.height:,} pixels, more than {MAX_PIXELS:,}; scale it down")


def _brightened(image: "Image") -> "Image":
    """Rescale 12-bit colors. Pillow keeps the upper 8 of 16 bits, so they use only the lower 4 of these 8 bits."""
    image.load()
    ranges = cast(tuple[tuple[int, int], ...], image.getextrema())[:3]
    if not 0 < max(high for _, high in ranges) < 16:
        return image
    _warn_twelve_bits()
    return image.point([min(255, 17 * value) for value in range(256)] * 3 + list(range(256)) * (image.mode == "RGBA"))


def _warn_twelve_bits() -> None:
    """Warn with a constant text, so that Python shows the warning once."""
    warnings.warn(
        "16-bit images whose values are all below 4096 are treated as 12-bit images, in which white is 4095; save dark "
        "16-bit images with 8 bits instead.",
        stacklevel=2,
    )
