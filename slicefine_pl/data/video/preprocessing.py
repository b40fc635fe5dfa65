"""Look up which clips a video backbone expects: number of frames, duration and crop size.

The information comes from an exported folder, a config of transformers, or a table of published weights. No network is
built.
"""

from pathlib import Path
from typing import Any

from slicefine_pl.inputs import VideoInput, stored_input
from slicefine_pl.pretrained import locate, read_config

FRAME_RATE = 30.0  # frames per second of Kinetics
DEFAULT = (16, 2.0, 224)
# Frames, seconds and size of the training crop, of pytorchvideo's model zoo
PYTORCHVIDEO = {
    "mvit_base_16x4": (16, 16 * 4 / FRAME_RATE, 224),
    "mvit_base_32x3": (32, 32 * 3 / FRAME_RATE, 224),
    "slow_r50": (8, 8 * 8 / FRAME_RATE, 224),
    "slowfast_r50": (32, 32 * 2 / FRAME_RATE, 224),
    "slowfast_r101": (32, 32 * 2 / FRAME_RATE, 224),
    "x3d_xs": (4, 4 * 12 / FRAME_RATE, 160),
    "x3d_s": (13, 13 * 6 / FRAME_RATE, 160),
    "x3d_m": (16, 16 * 5 / FRAME_RATE, 224),
    "x3d_l": (16, 16 * 5 / FRAME_RATE, 312),
}
I3D = (32, 64 / 25, 224)  # trained on 64 frames at 25 per second; every second one suffices for fine-tuning
I3D_FILES = ("i3d-kinetics-400.ckpt", "i3d.py")  # file of the published weights, and of an export
STRIDES = {
    "vivit": 2,
    "timesformer": 32,
}  # distance of two frames of a clip, in frames of the video; otherwise 4, as in VideoMAE


def video_input(backbone: str | None, test_views: tuple[int, int]) -> VideoInput:
    """Return the clips of a backbone, an exported folder or a checkpoint.

    An unknown backbone gets 16 frames of 224 pixels over 2 seconds. A network that needs others raises an error when it
    is loaded.

    Args:
        backbone: Name or folder of a backbone, or path of a ``.ckpt`` file; ``None`` for an unknown one.
        test_views: Number of test clips per video, and of crops per clip, if there is no record of training.
    """
    if backbone is None:
        return VideoInput(*DEFAULT, *test_views)
    trained = stored_input(backbone, VideoInput)
    return VideoInput(*_published(backbone), *test_views) if trained is None else trained


def _published(backbone: str) -> tuple[int, float, int]:
    if backbone.startswith("pytorchvideo/"):
        return PYTORCHVIDEO.get(backbone.removeprefix("pytorchvideo/"), DEFAULT)
    place = Path(locate(backbone))
    if any((place / file).is_file() for file in I3D_FILES):
        return I3D
    settings = read_config(str(place))
    return _built(settings["settings"]) if settings.get("library") == "pytorchvideo" else _transformers(str(place))


def _built(settings: Any) -> tuple[int, float, int]:
    """Return the clips of an export without a record, from the settings its network was built with."""
    frames = settings.get("input_clip_length", settings.get("temporal_size", DEFAULT[0]))
    return frames, DEFAULT[1], settings.get("input_crop_size", settings.get("spatial_size", DEFAULT[2]))


def _transformers(place: str) -> tuple[int, float, int]:
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(place)
    except (OSError, ValueError):  # the module reports why it cannot be loaded
        return DEFAULT
    frames, edge = getattr(config, "num_frames", None) or DEFAULT[0], getattr(config, "image_size", None) or DEFAULT[2]
    return frames, frames * STRIDES.get(config.model_type, 4) / FRAME_RATE, edge if isinstance(edge, int) else max(edge)
