"""Read the clips of a video file on which a network is tested.

Every export of a video network contains copies of this file and of the files that it imports. So an exported network
sees a video as in the tests, without this package. These files import only PyAV, numpy and torch.

Shapes:  V views · T frames · S edge of the crop, in pixels
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from slicefine_pl.data.video.decoding import Box, Video


def read_clips(
    path: str, *, num_frames: int, clip_seconds: float, crop_size: int, test_clips: int = 1, test_crops: int = 1
) -> Tensor:
    """Read clips spread evenly over a video, each with crops spread evenly along the longer side.

    Args:
        path: Video file.
        num_frames: Number of frames in a clip (T), evenly spaced.
        clip_seconds: Duration of a clip, in seconds.
        crop_size: Height and width of the output, in pixels (S).
        test_clips: Number of clips. The first one starts with the video; a single one is taken from the middle.
        test_crops: Number of square crops along the longer side. A single one is taken from the middle.

    Returns:
        uint8, shape ``(V, 3, T, S, S)`` with V = test_clips x test_crops.

    Raises:
        UnreadableVideo: The file is damaged, or is not a video.
    """
    choose = partial(_even_boxes, crops=test_crops)
    with Video(path) as video:
        latest = max(video.seconds - clip_seconds, 0.0)
        starts = [latest / 2] if test_clips == 1 else [latest / test_clips * number for number in range(test_clips)]
        return torch.cat([cut_clip(video, start, num_frames, clip_seconds, choose, crop_size) for start in starts])


def cut_clip(
    video: Video,
    start: float,
    num_frames: int,
    clip_seconds: float,
    choose: Callable[[int, int], Sequence[Box]],
    edge: int,
) -> Tensor:
    """Read one clip.

    Args:
        video: The open video.
        start: Start of the clip, in seconds.
        num_frames: Number of frames (T).
        clip_seconds: Duration of the clip, in seconds.
        choose: Returns the K boxes to crop, given width and height of the frames.
        edge: Height and width of the output, in pixels (S).

    Returns:
        uint8, shape ``(K, 3, T, S, S)``.
    """
    if video.seconds < clip_seconds * (num_frames - 1) / num_frames:
        warnings.warn(
            f"video {str(video.path)!r} lasts {video.seconds:.2f} s, less than clip_seconds={clip_seconds}: its last "
            "frame is repeated (this warning appears once for all such videos).",
            stacklevel=2,
        )
    times = [start + number * clip_seconds / num_frames for number in range(num_frames)]
    return torch.from_numpy(video.frames(times, choose, edge)).permute(0, 4, 1, 2, 3)


def _even_boxes(width: int, height: int, *, crops: int) -> list[Box]:
    edge = min(width, height)
    positions = [0.5] if crops == 1 else np.linspace(0, 1, crops).tolist()
    return [Box(round(at * (width - edge)), round(at * (height - edge)), edge, edge) for at in positions]
