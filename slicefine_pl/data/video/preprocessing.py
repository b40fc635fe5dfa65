"""Which clips does a video network expect: how many frames, over what time, and how large?

Reads what an export of ours or a config of transformers says, or what is known of published weights; builds no network.
"""

from pathlib import Path
from typing import Any

from slicefine_pl.inputs import VideoInput, trained_input
from slicefine_pl.pretrained import locate, read_config

RATE = 30.0  # frames a second of Kinetics
VIEWS = (4, 3)  # clips of each test video, and squares of each clip
USUAL = (16, 2.0, 224)
# Frames, seconds and edge of the training crop, of pytorchvideo's model zoo
PYTORCHVIDEO = {
    "mvit_base_16x4": (16, 16 * 4 / RATE, 224),
    "mvit_base_32x3": (32, 32 * 3 / RATE, 224),
    "slow_r50": (8, 8 * 8 / RATE, 224),
    "slowfast_r50": (32, 32 * 2 / RATE, 224),
    "slowfast_r101": (32, 32 * 2 / RATE, 224),
    "x3d_xs": (4, 4 * 12 / RATE, 160),
    "x3d_s": (13, 13 * 6 / RATE, 160),
    "x3d_m": (16, 16 * 5 / RATE, 224),
    "x3d_l": (16, 16 * 5 / RATE, 312),
}
I3D = (32, 64 / 25, 224)  # it was trained on 64 frames, 25 a second; every second one is enough to fine-tune
I3D_FILES = ("i3d-kinetics-400.ckpt", "i3d.py")  # of the published weights, and of an export
STRIDES = {"vivit": 2, "timesformer": 32}  # frames of the video from one of the clip to the next; else 4, as VideoMAE


def video_input(backbone: str | None) -> VideoInput:
    """Look up the clips of a backbone by its name or folder, or of a checkpoint by its file.

    Of what nothing is known, it returns the usual ones: a network that takes others says so when it is loaded.
    """
    if backbone is None:
        return VideoInput(*USUAL, *VIEWS)
    trained = trained_input(backbone, VideoInput)
    return VideoInput(*_published(backbone), *VIEWS) if trained is None else trained


def _published(backbone: str) -> tuple[int, float, int]:
    if backbone.startswith("pytorchvideo/"):
        return PYTORCHVIDEO.get(backbone.removeprefix("pytorchvideo/"), USUAL)
    place = Path(locate(backbone))
    if any((place / file).is_file() for file in I3D_FILES):
        return I3D
    settings = read_config(str(place))
    return _built(settings["settings"]) if settings.get("library") == "pytorchvideo" else _transformers(str(place))


def _built(settings: Any) -> tuple[int, float, int]:
    """Of an export that says no more than how its network was built."""
    frames = settings.get("input_clip_length", settings.get("temporal_size", USUAL[0]))
    return frames, USUAL[1], settings.get("input_crop_size", settings.get("spatial_size", USUAL[2]))


def _transformers(place: str) -> tuple[int, float, int]:
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(place)
    except (OSError, ValueError):  # the module says why it cannot be loaded
        return USUAL
    frames, edge = getattr(config, "num_frames", None) or USUAL[0], getattr(config, "image_size", None) or USUAL[2]
    return frames, frames * STRIDES.get(config.model_type, 4) / RATE, edge if isinstance(edge, int) else max(edge)
