"""From a video file to the clips that a network is tested on.

Every export of a video network carries copies of this file and of those that it imports, so that the folder sees a
video as tests saw it, without this package.  So they stand on PyAV, numpy and torch alone.

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
    """Cut clips out of a video: ``test_clips`` spread evenly over its time, each ``test_crops`` times along its side.

    Args:
        path: Video file.
        num_frames: Frames of a clip (T), evenly spaced.
        clip_seconds: Time that a clip spans.
        crop_size: Edge of the output, in pixels (S).
        test_clips: Clips, from the beginning on; a single one is taken from the middle.
        test_crops: Squares along the longer side of the picture; a single one is taken from the middle.

    Returns:
        uint8, shape ``(V, 3, T, S, S)`` with V = test_clips x test_crops.

    Raises:
        UnreadableVideo: The file is damaged, or no video.
    """
    choose = partial(_even_boxes, crops=test_crops)
    with Video(path) as video:
        room = max(video.seconds - clip_seconds, 0.0)
        starts = [room / 2] if test_clips == 1 else [room / test_clips * place for place in range(test_clips)]
        return torch.cat([cut_clip(video, start, num_frames, clip_seconds, choose, crop_size) for start in starts])


def cut_clip(
    video: Video,
    start: float,
    num_frames: int,
    clip_seconds: float,
    choose: Callable[[int, int], Sequence[Box]],
    edge: int,
) -> Tensor:
    """One clip as uint8, shape ``(K, 3, T, S, S)``, of the K boxes that ``choose`` gives."""
    if video.seconds < clip_seconds * (num_frames - 1) / num_frames:
        warnings.warn(
            f"video {str(video.path)!r} lasts {video.seconds:.2f} s, less than clip_seconds={clip_seconds}: its last "
            "frame is held (told once for all such videos).",
            stacklevel=2,
        )
    times = [start + number * clip_seconds / num_frames for number in range(num_frames)]
    return torch.from_numpy(video.frames(times, choose, edge)).permute(0, 4, 1, 2, 3)


def _even_boxes(width: int, height: int, *, crops: int) -> list[Box]:
    edge = min(width, height)
    shares = [0.5] if crops == 1 else np.linspace(0, 1, crops).tolist()
    return [Box(round(share * (width - edge)), round(share * (height - edge)), edge, edge) for share in shares]
