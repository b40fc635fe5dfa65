"""Look up which images a backbone expects: size, crop and normalization.

The information comes from an exported folder, timm, torchvision or the image processor of transformers. No network is
built.
"""

from typing import Any, Literal

import numpy as np

from slicefine_pl.inputs import ImageInput, stored_input
from slicefine_pl.pretrained import parse_backbone, read_config

# Pillow's constants, which transformers stores
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
SQUASHED_FROM = 384  # ConvNext's processor squashes images of this size and larger, and crops smaller ones


def image_input(backbone: str) -> ImageInput:
    """Return the input of a backbone, an exported folder or a checkpoint.

    Args:
        backbone: As in :func:`~slicefine_pl.pretrained.parse_backbone`, or the path of a ``.ckpt`` file.

    Raises:
        ValueError: The library has no such information.
    """
    if (trained := stored_input(backbone, ImageInput)) is not None:
        return trained
    kind, name, _ = parse_backbone(backbone)
    try:
        return {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}[kind](name)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"processor={backbone!r} does not specify size, mean and std of its images "
            f"({' '.join(str(error).split())[:300]}); give all three: data.size, data.mean and data.std."
        ) from error


def _timm(name: str) -> ImageInput:
    settings: Any = read_config(name).get("pretrained_cfg")
    if settings is None:
        import timm

        found: Any = timm.get_pretrained_cfg(name)
        if found is None:
            raise ValueError(f"timm has no model {name!r}")
        settings = found.to_dict()
    channels, height, width = settings["input_size"]
    if channels != 3:
        raise ValueError(f"it takes {channels} channels, and images here have 3")
    if height != width:
        raise ValueError(f"it takes {height} x {width} pixels, and images here are square")
    resampling = settings["interpolation"] if settings["interpolation"] in RESAMPLING.values() else "bilinear"
    mode: Literal["squash", "center"] = "squash" if settings.get("crop_mode") == "squash" else "center"
    return ImageInput(width, settings["mean"], settings["std"], settings["crop_pct"], resampling, mode)


def _torchvision(name: str) -> ImageInput:
    from torchvision.models import get_model_weights

    folder = read_config(name)
    weights: Any = get_model_weights(str(folder.get("architecture", name)))
    preset = weights.DEFAULT.transforms()
    [size], [resized] = preset.crop_size, preset.resize_size
    trained: Any = folder.get("input_size")  # exports without a record have only this
    return ImageInput(trained or size, preset.mean, preset.std, size / resized, preset.interpolation.value)


def _transformers(name: str) -> ImageInput:
    from transformers import AutoImageProcessor

    processor: Any = AutoImageProcessor.from_pretrained(name)  # type: ignore[no-untyped-call]
    resized = {side: value for side, value in dict(processor.size).items() if value is not None}
    short = resized.get("shortest_edge", resized.get("height"))
    if short is None or resized.get("width", short) != short:
        raise ValueError(f"its processor resizes to {resized}, and images here are square")
    squash, size, crop = "shortest_edge" not in resized, short, 1.0
    if getattr(processor, "do_center_crop", False):
        size = dict(processor.crop_size)["height"]
        crop = size / short
    elif hasattr(processor, "crop_pct"):
        squash, crop = (True, 1.0) if short >= SQUASHED_FROM else (False, processor.crop_pct)
    mean, std = _normalization(processor, int(size))
    resampling = RESAMPLING.get(int(2 if processor.resample is None else processor.resample), "bilinear")
    return ImageInput(int(size), mean, std, crop, resampling, "squash" if squash else "center", rounding="down")


def _normalization(processor: Any, size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and standard deviation on a black, a white and a red image.

    The settings of a processor do not suffice: several rescale to other ranges, EfficientNet's divides twice, and
    MobileViT's swaps red and blue.

    Raises:
        ValueError: The processor swaps colors, or returns another size than its settings say.
    """
    flat = [np.full((size, size, 3), color, np.uint8) for color in ((0, 0, 0), (255, 255, 255), (255, 0, 0))]
    found = np.asarray(processor(images=flat, return_tensors="np")["pixel_values"], dtype=np.float64)
    if found.shape != (3, 3, size, size):
        raise ValueError(f"its processor makes {found.shape[1:]} of an image of {size} x {size} pixels")
    black, white, red = found.mean((2, 3))
    if not np.isclose(red[0], white[0]):
        raise ValueError("its processor swaps red and blue")
    mean, std = -black / (white - black), 1 / (white - black)
    return tuple(mean.round(6).tolist()), tuple(std.round(6).tolist())
