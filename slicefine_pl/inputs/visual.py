"""What an image or video network saw during training.

Shapes:  T frames · S height and width in pixels
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from slicefine_pl.inputs.record import InputRecord

INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's filters


@dataclass(frozen=True)
class ImageInput(InputRecord):
    """What a network sees of an image in evaluation: the image is resized, cropped at the center and normalized.

    Attributes:
        size: Height and width of the crop, in pixels (S).
        mean: Mean of each color channel, for values in [0, 1].
        std: Standard deviation of each color channel.
        crop: Size of the crop as a fraction of the short side of the resized image.
        interpolation: One of Pillow's filters, e.g. ``"bilinear"`` or ``"bicubic"``.
        crop_mode: ``"center"`` resizes the short side and keeps the aspect ratio. ``"squash"`` resizes both sides to
            the same length. The names are timm's.
        rounding: How the position of the crop is rounded if the margin is odd. ``"even"`` rounds half a pixel to the
            nearest even number, as torchvision and timm do. ``"down"`` rounds down, as transformers does.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 0.875
    interpolation: str = "bilinear"
    crop_mode: Literal["center", "squash"] = "center"
    rounding: Literal["even", "down"] = "even"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # JSON and YAML have lists
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        _check_positive(size=self.size, crop=self.crop)
        if not (len(self.mean) == len(self.std) == 3 and all(map(math.isfinite, self.mean + self.std))):
            raise ValueError(f"mean={list(self.mean)} and std={list(self.std)} must be three finite numbers each.")
        if min(self.std) <= 0:
            raise ValueError(f"std={list(self.std)} must be three numbers above 0.")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation={self.interpolation!r} is unknown; choose one of {INTERPOLATIONS}.")

    @property
    def resize_size(self) -> int:
        """Short side of the resized image, in pixels."""
        return int(self.size / self.crop + 1e-6)


@dataclass(frozen=True)
class VideoInput(InputRecord):
    """What a network sees of a video.

    Attributes:
        num_frames: Number of frames in a clip (T), evenly spaced.
        clip_seconds: Duration of a clip, in seconds.
        crop_size: Height and width of the square crop, in pixels (S).
        test_clips: Number of clips of a video in tests and predictions, spread evenly. A single clip is the middle one.
        test_crops: Number of crops of each such clip, spread evenly along the longer side. A single crop is the middle
            one.
    """

    num_frames: int
    clip_seconds: float
    crop_size: int
    test_clips: int = 1
    test_crops: int = 1
    evaluation_settings: ClassVar[tuple[str, ...]] = ("test_clips", "test_crops")

    def __post_init__(self) -> None:
        _check_positive(**vars(self))


def _check_positive(**values: float) -> None:
    """Raise ValueError for a number that is not finite or not above 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value} must be a finite number above 0.")
