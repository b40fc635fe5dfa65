"""From a file to an RGB image.

Answers: what colours does a viewer see?  Grey, palette, transparent, CMYK, one-bit, 12-bit and 16-bit images become
8-bit RGB, the right way up; what has no known range of values is refused.  Only formats that Pillow decodes by itself
are opened: it hands others, such as EPS, to programs of the system.

Every export of an image network carries a copy of this file, so it stands on Pillow and numpy alone.
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

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "TGA", "QOI", "SGI", "PCX")
OPTIONAL = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # what Pillow may be built without
MAX_PIXELS = 89_478_485  # of a decoded image: at this size Pillow warns of decompression bombs; 358 MB as RGB
_OPENING = threading.Lock()  # Pillow's limit is one number for the whole process


class UnreadableImageError(ValueError):
    """An image that cannot be decoded; the message names it and says why."""


@cache
def formats() -> list[str]:
    """The formats that are opened, of those that this Pillow can decode."""
    from PIL import Image, features

    Image.init()
    known = [each for each in FORMATS if each in Image.OPEN]
    return [each for each in known if each not in OPTIONAL or features.check(OPTIONAL[each])]


@cache
def suffixes() -> tuple[str, ...]:
    """Suffixes of these formats, lower case, with the dot."""
    from PIL import Image

    known = {*formats(), "MPO"}  # several JPEGs in one, which the reader of JPEG opens
    return tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in known))


def read_rgb(path: str | Path) -> "Image":
    """Read a file as an RGB image; of several frames the first.

    An image of more than ``MAX_PIXELS`` is refused, except for a JPEG of up to four times as many: that is decoded at
    half its height and width.

    Raises:
        UnreadableImageError: It is missing, damaged, not an image, too large, or of a kind without a known range.
    """
    from PIL import ImageOps

    def read() -> "Image":
        with _opened(path) as image:
            _limit(image)
            deep = ";16" in str(image.tile)  # Pillow keeps the upper 8 bits of deep colours, and all 16 of deep greys
            ImageOps.exif_transpose(image, in_place=True)
            return as_rgb(_brightened(image) if deep and image.mode in ("RGB", "RGBA") else image)

    return decoded(read, f"image {str(path)!r}")


def decoded(read: Callable[[], "Image"], place: str) -> "Image":
    """Return ``read()``; every way in which decoding can fail becomes one kind of error.

    Raises:
        UnreadableImageError: It failed.
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
    """Turn any image into 8-bit RGB: transparency over white, 16 bits scaled by 1/257.

    A grey image of 16 bits with values up to 4095 only is taken as one of 12 bits, with a warning.

    Raises:
        ValueError: Its pixels have no known range.
    """
    from PIL import Image

    image.load()  # all of it, while the file is open
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 1 << 16:
            raise ValueError(f"mode {image.mode!r} with values beyond 16 bits; convert it to 8 or 16 bits")
        if twelve_bits := 0 < values.max() < 1 << 12:
            _say_twelve_bits()
        return Image.fromarray((values // (16 if twelve_bits else 257)).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("mode 'F', pixels are floats without a known range; convert it to 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        coloured = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(coloured, (0, 0), coloured)
        return white
    return image.convert("RGB")


@contextmanager
def _opened(path: str | Path) -> "Iterator[ImageFile]":
    """Open a file without Pillow's own check of the size, which does not name the file."""
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
    """Have a large JPEG decoded at half its height and width, and refuse other large images.

    Raises:
        ValueError: It has too many pixels.
    """
    pixels = image.width * image.height
    if MAX_PIXELS < pixels <= 4 * MAX_PIXELS and image.format in ("JPEG", "MPO"):
        image.draft(None, (image.width // 2, image.height // 2))
    elif pixels > MAX_PIXELS:
        raise ValueError(f"{image.width:,} x {image.height:,} pixels, more than {MAX_PIXELS:,}; scale it down")


def _brightened(image: "Image") -> "Image":
    """Colours of 16 bits, of which Pillow keeps the upper 8: those of 12 bits fill only the lower 4 of these."""
    image.load()
    ranges = cast(tuple[tuple[int, int], ...], image.getextrema())[:3]
    if not 0 < max(high for _, high in ranges) < 16:
        return image
    _say_twelve_bits()
    return image.point([min(255, 17 * value) for value in range(256)] * 3 + list(range(256)) * (image.mode == "RGBA"))


def _say_twelve_bits() -> None:
    """Say it in the same words each time, so that Python shows it once."""
    warnings.warn(
        "images of 16 bits with values below 4096 only are taken as images of 12 bits, in which white is 4095; save "
        "dark images of 16 bits with 8 bits instead.",
        stacklevel=2,
    )
