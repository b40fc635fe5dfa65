"""Video classifiers of transformers: VideoMAE, ViViT, TimeSformer, and what else its Auto class knows.

Answers: how does one of them load, what clips does it take, and is its head new?

Shapes:  N clips · T frames · S edge of a frame, in pixels
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForVideoClassification
from transformers.utils import logging
from transformers.utils.hub import cached_file

from slicefine_pl.modules.video.backbone import FACEBOOK, IMAGENET, SYMMETRIC, Backbone, Numbers
from slicefine_pl.pretrained import has_random_weights

NORMALIZATION = {"timesformer": FACEBOOK, "vivit": SYMMETRIC}  # of the published weights; all others ImageNet's


def from_transformers(name: str, place: str, num_classes: int | None, *, num_frames: int, crop_size: int) -> Backbone:
    """Load a classifier; a folder with ``config.json`` but no weights starts at random.

    Args:
        name: As the user wrote it, for messages.
        place: Folder or hub name.
        num_classes: Classes; ``None`` takes those of the model.
        num_frames: Of a clip (T).
        crop_size: Edge of a frame (S).

    Raises:
        ValueError: It cannot be loaded, or takes clips of another size.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        config: Any = AutoConfig.from_pretrained(place)
        _check_size(name, config, num_frames, crop_size)
        if num_classes is not None and num_classes != config.num_labels:
            config.num_labels = num_classes
        blank = has_random_weights(name, place)
        if blank:
            model, report = AutoModelForVideoClassification.from_config(config), {}  # type: ignore[no-untyped-call]
        else:
            model, report = AutoModelForVideoClassification.from_pretrained(
                place, config=config, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except OSError as error:
        raise ValueError(
            f"backbone={name!r} could not be loaded ({' '.join(str(error).split())}); give a hub name, a folder with "
            "config.json and weights, or 'pytorchvideo/<name>'."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    new_head = blank or bool(report["missing_keys"] or report["mismatched_keys"])
    head = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    names = None if new_head else [str(label) for label in config.id2label.values()]
    return Backbone(model, head, _frames_first, _normalization(place, config), None, new_head, not blank, names)


def write_processor(folder: Path, normalization: Numbers, crop_size: int) -> None:
    """Write the settings of the image processor that shows the middle of each frame: VideoMAE's, which others use too.

    Args:
        folder: Of the model.
        normalization: Mean and standard deviation per colour.
        crop_size: Edge of a frame (S).
    """
    mean, std = normalization
    settings = {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": crop_size},
        "resample": 2,  # bilinear
        "do_center_crop": True,
        "crop_size": {"height": crop_size, "width": crop_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=1) + "\n", "utf-8")


def _check_size(name: str, config: Any, num_frames: int, crop_size: int) -> None:
    frames, edge = getattr(config, "num_frames", num_frames), getattr(config, "image_size", crop_size)
    if (frames, edge) != (num_frames, crop_size):
        raise ValueError(
            f"backbone={name!r} takes {frames} frames of {edge} pixels, not {num_frames} of {crop_size}; "
            f"set --data.num_frames {frames} --data.crop_size {edge}."
        )


def _normalization(place: str, config: Any) -> Numbers:
    file = cached_file(place, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    settings = {} if file is None else json.loads(Path(file).read_text("utf-8"))
    if "image_mean" in settings and "image_std" in settings:
        return tuple(settings["image_mean"]), tuple(settings["image_std"])
    return NORMALIZATION.get(config.model_type, IMAGENET)


def _frames_first(clips: Tensor) -> dict[str, Tensor]:
    return {"pixel_values": clips.transpose(1, 2)}
