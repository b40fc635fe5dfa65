"""Load video networks of transformers: VideoMAE, ViViT, TimeSformer, and others that its Auto class supports.

Shapes:  N clips · T frames · S height and width of a frame, in pixels
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForVideoClassification
from transformers.utils.hub import cached_file

from slicefine_pl.modules.auto_model import load_auto_model, load_config, loading_errors
from slicefine_pl.modules.video.backbone import FACEBOOK, IMAGENET, SYMMETRIC, Normalization, VideoBackbone
from slicefine_pl.pretrained import has_random_weights

NORMALIZATION = {"timesformer": FACEBOOK, "vivit": SYMMETRIC}  # of the published weights; all others use ImageNet's
REMEDY = "give a hub name, a folder with config.json and weights, or 'pytorchvideo/<name>'"


def from_transformers(
    name: str, place: str, num_classes: int | None, *, num_frames: int, crop_size: int
) -> VideoBackbone:
    """Load a classifier. A folder with ``config.json`` but without weights gets random weights.

    Args:
        name: Name as the user wrote it, for messages.
        place: Folder or hub name.
        num_classes: Number of classes; ``None`` takes that of the model.
        num_frames: Number of frames in a clip (T).
        crop_size: Height and width of a frame, in pixels (S).

    Raises:
        ValueError: The network cannot be loaded, or needs clips of another size.
    """
    with loading_errors(name, REMEDY):
        config = load_config(place)
    _check_size(name, config, num_frames, crop_size)
    if num_classes is not None and num_classes != config.num_labels:
        config.num_labels = num_classes
    with loading_errors(name, REMEDY):
        model, new_head, is_random = load_auto_model(
            AutoModelForVideoClassification, place, config, random_weights=has_random_weights(name, place)
        )
    head = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    return VideoBackbone(
        model=model,
        head=head,
        format_input=_frames_first,
        normalization=_normalization(place, config),
        config=None,
        new_head=new_head,
        pretrained=not is_random,
        label_names=None if new_head else [str(label) for label in config.id2label.values()],
    )


def write_processor(folder: Path, normalization: Normalization, crop_size: int) -> None:
    """Write the settings of an image processor that crops the center of each frame. It is that of VideoMAE.

    Args:
        folder: Folder of the model.
        normalization: Mean and standard deviation of each color channel.
        crop_size: Height and width of a frame, in pixels (S).
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
            f"backbone={name!r} needs {frames} frames of {edge} pixels, not {num_frames} of {crop_size}; "
            f"set --data.num_frames {frames} --data.crop_size {edge}."
        )


def _normalization(place: str, config: Any) -> Normalization:
    file = cached_file(place, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    settings = {} if file is None else json.loads(Path(file).read_text("utf-8"))
    if "image_mean" in settings and "image_std" in settings:
        return Normalization(tuple(settings["image_mean"]), tuple(settings["image_std"]))
    return NORMALIZATION.get(config.model_type, IMAGENET)


def _frames_first(clips: Tensor) -> dict[str, Tensor]:
    return {"pixel_values": clips.transpose(1, 2)}
