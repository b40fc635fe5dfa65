"""What a network saw in training: size, normalization and crop of images; frames, times and crop of videos.

A data module makes such an input. A module keeps it in its checkpoints, and in ``config.json`` of its exports, so that
evaluation and prediction see what training saw. Knows neither networks nor data.

Shapes:  T frames · S height and width in pixels
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from slicefine_pl.files.safe_load import load_plain
from slicefine_pl.pretrained import locate, read_config

INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's filters
RECORD = "input"  # the key in checkpoints and in config.json


@dataclass(frozen=True)
class ImageInput:
    """What a network sees of an image in evaluation.

    Attributes:
        size: Height and width, in pixels (S).
        mean: Of each colour, for values in [0, 1].
        std: Of each colour.
        crop: Share of the resized image's short side that the central crop keeps.
        interpolation: ``"bilinear"``, ``"bicubic"`` or another of Pillow's filters.
        crop_mode: ``"center"`` resizes the short side and keeps the shape of the image; ``"squash"`` resizes both sides
            to the same length. The words are timm's.
        rounding: Where the crop begins if the margins are odd: ``"even"`` rounds half pixels to even numbers, as
            torchvision and timm do; ``"down"`` is the rule of transformers.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 0.875
    interpolation: str = "bilinear"
    crop_mode: Literal["center", "squash"] = "center"
    rounding: Literal["even", "down"] = "even"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # lists out of files and settings
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        _check_positive(size=self.size, crop=self.crop)
        if not (len(self.mean) == len(self.std) == 3 and all(map(math.isfinite, self.mean + self.std))):
            raise ValueError(f"mean={_plain(self.mean)} and std={_plain(self.std)} must be three finite numbers each.")
        if min(self.std) <= 0:
            raise ValueError(f"std={_plain(self.std)} must be three numbers above 0.")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation={self.interpolation!r} is unknown; choose one of {INTERPOLATIONS}.")

    @property
    def edge(self) -> int:
        """Short side of the resized image, in pixels."""
        return int(self.size / self.crop + 1e-6)


@dataclass(frozen=True)
class VideoInput:
    """What a network sees of a video.

    Attributes:
        num_frames: Frames of a clip (T), evenly spaced.
        clip_seconds: Time that a clip spans.
        crop_size: Height and width, in pixels (S), of the square that is cut out.
        test_clips: Clips of a video in tests and predictions, spread evenly; a single one is the middle.
        test_crops: Squares of each such clip, spread evenly along the longer side; a single one is the middle.
    """

    num_frames: int
    clip_seconds: float
    crop_size: int
    test_clips: int = 1
    test_crops: int = 1

    def __post_init__(self) -> None:
        _check_positive(**vars(self))


EVALUATION = ("test_clips", "test_crops")  # a choice of each evaluation; the rest belongs to the trained network
Input = TypeVar("Input", bound=ImageInput | VideoInput)


def input_record(place: str) -> Mapping[str, Any] | None:
    """Return what a checkpoint or an exported folder says of its input; ``None`` where it says nothing.

    Args:
        place: A ``.ckpt`` file, or a backbone's name or folder.
    """
    if Path(place).is_file() and Path(place).suffix == ".ckpt":
        found = load_plain(place, "checkpoint", mmap=True).get(RECORD)
    else:
        found = read_config(locate(place)).get(RECORD)
    return found if isinstance(found, Mapping) else None


def trained_input(place: str, kind: type[Input]) -> Input | None:
    """Return the input that a checkpoint or an exported folder was trained with; ``None`` where it does not say.

    Raises:
        ValueError: What it says is damaged.
    """
    record = input_record(place)
    return None if record is None else read_input(record, kind)


def read_input(record: Mapping[str, Any], kind: type[Input]) -> Input:
    """Turn the record of a checkpoint or an export into an input.

    Raises:
        ValueError: It lacks something, or says something unknown.
    """
    try:
        return kind(**record)
    except TypeError as error:
        names = [field.name for field in fields(kind)]
        raise ValueError(f"the input {dict(record)} is not one of {names} each; export the model again.") from error


def agreed_input(
    given: Mapping[str, Any], trained: Input | None, otherwise: Callable[[], Input], *, training: bool
) -> Input:
    """Settle what the network sees: given settings, then those of its training, then the backbone's.

    Args:
        given: Settings of the data module by name; ``None`` where they were left out.
        trained: What a trained network saw; ``None`` for one that nothing is known of.
        otherwise: Looks up what the backbone expects.
        training: Whether the network is trained anew, on whatever is given.

    Raises:
        ValueError: The network was trained with other settings, and is not trained anew.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if trained is None:
        return replace(otherwise(), **chosen)
    wanted = replace(trained, **chosen)
    for name in chosen:
        there, here = getattr(trained, name), getattr(wanted, name)
        if there != here and name not in EVALUATION and not training:
            raise ValueError(
                f"data.{name}={_plain(here)} contradicts the trained network, which saw data.{name}={_plain(there)}; "
                f"leave data.{name} out, or train anew with it from an exported folder."
            )
    return wanted


def _check_positive(**values: float) -> None:
    """Raise ValueError for a number that is not finite or not above 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value} must be a finite number above 0.")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
