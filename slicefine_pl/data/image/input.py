"""Which images does a backbone expect: how large, and with which mean and standard deviation?

Reads what timm, torchvision or the image processor of transformers say; builds no network.
"""

from dataclasses import dataclass
from typing import Any

from slicefine_pl.pretrained import folder_settings, image_backbone

RESAMPLING = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers, which transformers writes down


@dataclass(frozen=True)
class ImageInput:
    """What a network was trained on.

    Attributes:
        size: Height and width, in pixels.
        mean: Of each colour, for values in [0, 1].
        std: Of each colour.
        crop: Share of the resized image's short side that the central crop keeps.
        interpolation: ``"bilinear"``, ``"bicubic"`` or another name of torchvision's.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 0.875
    interpolation: str = "bilinear"


def image_input(backbone: str) -> ImageInput:
    """Look up the input of a backbone by its name or folder.

    Raises:
        ValueError: The library does not say.
    """
    kind, name, _ = image_backbone(backbone)
    try:
        return {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}[kind](name)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"processor={backbone!r} does not tell the size, mean and std of its images "
            f"({' '.join(str(error).split())[:300]}); give all three: data.size, data.mean and data.std."
        ) from error


def _timm(name: str) -> ImageInput:
    settings: Any = folder_settings(name).get("pretrained_cfg")
    if settings is None:
        import timm

        found: Any = timm.get_pretrained_cfg(name)
        if found is None:
            raise ValueError(f"timm knows no model {name!r}")
        settings = found.to_dict()
    if settings["input_size"][0] != 3:
        raise ValueError(f"it takes {settings['input_size'][0]} channels, and images here have 3")
    mean, std = tuple(settings["mean"]), tuple(settings["std"])
    resampling = settings["interpolation"] if settings["interpolation"] in RESAMPLING.values() else "bilinear"
    return ImageInput(settings["input_size"][-1], mean, std, settings["crop_pct"], resampling)


def _torchvision(name: str) -> ImageInput:
    from torchvision.models import get_model_weights

    folder = folder_settings(name)
    weights: Any = get_model_weights(str(folder.get("architecture", name)))
    preset = weights.DEFAULT.transforms()
    [size], [resized] = preset.crop_size, preset.resize_size
    known = ImageInput(size, tuple(preset.mean), tuple(preset.std), size / resized, preset.interpolation.value)
    trained: Any = folder.get("input_size")
    return known if trained is None else ImageInput(trained, known.mean, known.std, known.crop, known.interpolation)


def _transformers(name: str) -> ImageInput:
    from transformers import AutoImageProcessor

    processor: Any = AutoImageProcessor.from_pretrained(name)  # type: ignore[no-untyped-call]
    resized = dict(processor.size)
    short = resized.get("shortest_edge", resized.get("height"))
    cropped = dict(processor.crop_size or {}) if getattr(processor, "do_center_crop", False) else {}
    size = cropped.get("height", short)
    if size is None:
        raise ValueError(f"its processor resizes to {resized}, which is no square")
    crop = size / short if short else 1.0
    resampling = RESAMPLING.get(int(getattr(processor, "resample", None) or 2), "bilinear")
    return ImageInput(int(size), tuple(processor.image_mean), tuple(processor.image_std), crop, resampling)
