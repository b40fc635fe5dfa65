"""From a video file to the clips that a network is tested on: stands on PyAV, numpy and torch alone.

Every export of a video network copies this file, so that the folder predicts without this package. It decodes all
frames up to the last wanted one, which is slow for long videos, and simple.

Shapes:  V views · T frames · S height and width in pixels
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

TURNS = (
    (),
    (("transpose", "cclock"),),
    (("hflip", ""), ("vflip", "")),
    (("transpose", "clock"),),
)  # by 90 degrees each
Picture = np.ndarray[Any, np.dtype[np.uint8]]
if TYPE_CHECKING:  # imported where a video is opened
    import av


def read_clips(
    path: str, *, num_frames: int, clip_seconds: float, crop_size: int, test_clips: int = 1, test_crops: int = 1
) -> Tensor:
    """Cut clips out of a video: ``test_clips`` spread evenly over its time, each ``test_crops`` times along its side.

    Args:
        path: Video file.
        num_frames: Frames of a clip (T), evenly spaced.
        clip_seconds: Time that a clip spans.
        crop_size: Height and width (S).
        test_clips: Clips, from the beginning on; a single one is taken from the middle.
        test_crops: Squares along the longer side of the picture; a single one is taken from the middle.

    Returns:
        uint8, shape ``(V, 3, T, S, S)`` with V = test_clips x test_crops.

    Raises:
        ValueError: No frame can be decoded.
    """
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        own = None if stream.duration is None or stream.time_base is None else stream.duration * stream.time_base
        seconds = float((container.duration or 0) / 1_000_000 if own is None else own)
        room = max(seconds - clip_seconds, 0.0)
        starts = [room / 2] if test_clips == 1 else [room * place / test_clips for place in range(test_clips)]
        times = [[start + number * clip_seconds / num_frames for number in range(num_frames)] for start in starts]
        views = _views(
            container.decode(stream), sorted({time for clip in times for time in clip}), crop_size, test_crops
        )
    if not views:
        raise ValueError(f"video {path!r} has no frame that can be decoded; give another one.")
    return torch.from_numpy(np.concatenate([np.stack([views[time] for time in clip], 2) for clip in times]))


def _views(frames: Any, times: Sequence[float], edge: int, crops: int) -> dict[float, Picture]:
    """The frame on show at each of the ascending ``times``, in seconds from the first frame, cut by ``_cut``."""
    views: dict[float, Picture] = {}
    waiting, shown, begin = list(times), None, None
    for frame in frames:
        if frame.time is None:
            continue
        begin = frame.time if begin is None else begin
        due = [time for time in waiting if time < frame.time - begin - 1e-6]
        if shown is not None and due:
            views |= dict.fromkeys(due, _cut(shown, edge, crops))
            waiting = waiting[len(due) :]
        shown = frame
        if not waiting:
            break
    if shown is not None and waiting:  # the last frame stays on show
        views |= dict.fromkeys(waiting, _cut(shown, edge, crops))
    return views


def _cut(frame: "av.VideoFrame", edge: int, crops: int) -> Picture:
    """Squares of an upright picture, shape ``(crops, 3, S, S)``, cut and scaled by FFmpeg's filters as in training."""
    from av.filter import Graph

    quarters = round(frame.rotation / 90) % 4
    width, height = (frame.height, frame.width) if quarters % 2 else (frame.width, frame.height)
    side = min(width, height)
    squares = []
    for share in [0.5] if crops == 1 else np.linspace(0, 1, crops).tolist():
        place = f"{side}:{side}:{round(share * (width - side))}:{round(share * (height - side))}:exact=1"
        filters = [*TURNS[quarters], ("crop", place), ("scale", f"{edge}:{edge}:flags=area"), ("format", "rgb24")]
        graph = Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        graph.link_nodes(source, *(graph.add(*each) for each in filters), graph.add("buffersink")).configure()
        graph.push(frame)
        squares.append(graph.vpull().to_ndarray().transpose(2, 0, 1))
    return np.stack(squares)
