"""From a file to an RGB image.

Answers: what colours does a viewer see?  Grey, palette, transparent, CMYK, one-bit and 16-bit images become 8-bit RGB,
the right way up; what has no known range of values is refused.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


class UnreadableImageError(ValueError):
    """An image that cannot be decoded; the message names it and says why."""


def read_rgb(path: str | Path) -> "Image":
    """Read a file as an RGB image; of several frames the first.

    Raises:
        UnreadableImageError: It is missing, damaged, no image, or of a kind without a known range.
    """
    from PIL import ImageOps
    from PIL.Image import open as open_image

    def read() -> "Image":
        with open_image(path) as image:
            return as_rgb(ImageOps.exif_transpose(image))

    return decoded(read, f"image {str(path)!r}")


def decoded(read: Callable[[], "Image"], place: str) -> "Image":
    """Return ``read()``, and tell every way in which decoding can fail as one kind of error.

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
            reason = "no image format known to Pillow"
        else:
            reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(f"{place} cannot be read ({reason})") from error


def as_rgb(image: "Image") -> "Image":
    """Turn any image into 8-bit RGB: transparency over white, 16 bits scaled by 1/257.

    Raises:
        ValueError: Its pixels have no known range.
    """
    from PIL import Image

    if image.mode == "RGB":
        return image.copy()  # decodes all of it, while the file is open
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"mode {image.mode!r} with values beyond 16 bits; convert it to 8 or 16 bits")
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("mode 'F', pixels are floats without a known range; convert it to 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")
