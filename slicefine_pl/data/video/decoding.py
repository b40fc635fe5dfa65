"""Decode the frames of a video file at given times, cropped and scaled, with PyAV.

Decoding is restricted to what a clip needs:

- Decoding starts at the last key frame before the clip.
- Unwanted frames to which no other frame refers are not decoded.
- Only wanted frames are cropped, scaled and converted, by FFmpeg's filters.
- Audio is not read.

Shapes:  K boxes · T times · S edge of the square output, in pixels
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from slicefine_pl.data.video.extent import check_complete, measure_duration
from slicefine_pl.data.video.track import PacketRun, Track, UnreadableVideo, reason_of

if TYPE_CHECKING:  # imported when a video is opened
    import av
    import av.filter

# FFmpeg's transpose filters, by whether the display matrix maps x to +y, and y to +x
TRANSPOSES = {
    (True, True): "cclock_flip",
    (True, False): "clock",
    (False, True): "cclock",
    (False, False): "clock_flip",
}


class Box(NamedTuple):
    """A part of the upright frame, in pixels."""

    left: int
    top: int
    width: int
    height: int


class Video:
    """An open video file. Frames are rotated upright.

    **Times** are in seconds from the first frame that can be decoded and that no edit list removes. The frame at time t
    is the one that a player shows: the last one that starts at t or before, also with a variable frame rate. After the
    end it is the last frame.
    **Containers.** Only containers with their own frames are opened, whatever the suffix of the file is. Playlists are
    refused, since they make FFmpeg open other files.
    **Limits.** Pixels are returned as stored: non-square pixels are not stretched, and interlaced frames are not
    deinterlaced.

    Args:
        path: Path of the file, in one of the ``CONTAINERS`` and any codec that FFmpeg supports.

    Raises:
        UnreadableVideo: The file contains no video, or its frames have more than ``MAX_PIXELS`` pixels.
    """

    def __init__(self, path: str | Path) -> None:
        from av.error import FFmpegError

        self.path = Path(path)
        try:
            self._track = Track(self.path)
        except FFmpegError as error:
            raise UnreadableVideo(self.path, reason_of(error)) from error
        self._seconds: float | None = None
        self._graphs: dict[tuple[int, int, str, Box], av.filter.Graph] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._track.container.close()

    @property
    def seconds(self) -> float:
        """Duration of the video stream, in seconds. For a truncated file it is the duration in the header.

        Raises:
            UnreadableVideo: The data are damaged.
        """
        from av.error import FFmpegError

        try:
            if self._seconds is None:
                self._seconds = measure_duration(self._track)
            return self._seconds
        except FFmpegError as error:
            raise UnreadableVideo(self.path, reason_of(error)) from error

    def frames(
        self, times: Sequence[float], choose: Callable[[int, int], Sequence[Box]], edge: int
    ) -> NDArray[np.uint8]:
        """Decode the frames that are shown at some times.

        Args:
            times: T times in seconds, ascending.
            choose: Returns the K boxes to crop, given width and height of the upright frames.
            edge: Width and height to which each box is scaled, in pixels (S).

        Returns:
            RGB values, uint8, shape ``(K, T, S, S, 3)``.

        Raises:
            UnreadableVideo: The data are damaged, or end earlier than the header says.
        """
        from av.error import FFmpegError

        try:
            return self._decode(times, choose, edge)
        except FFmpegError as error:
            raise UnreadableVideo(self.path, reason_of(error)) from error

    def _decode(
        self, times: Sequence[float], choose: Callable[[int, int], Sequence[Box]], edge: int
    ) -> NDArray[np.uint8]:
        from av.error import FFmpegError

        first, last = (self._track.stamp_at(time) for time in (times[0], times[-1]))
        for attempt, run in enumerate(self._track.runs(first, last)):
            check_complete(self._track, run, times[-1])
            try:
                found = self._pick(run, times, choose, edge)
            except FFmpegError:
                if attempt or run.from_start:
                    raise
                continue
            if found:
                return np.stack(found, axis=1)
        raise UnreadableVideo(self.path, "it contains no frame that can be decoded")

    def _pick(
        self, run: PacketRun, times: Sequence[float], choose: Callable[[int, int], Sequence[Box]], edge: int
    ) -> list[NDArray[np.uint8]]:
        """Return the frame shown at each time, shape ``(K, S, S, 3)``; empty if the packets start too late."""
        found: list[NDArray[np.uint8]] = []
        shown: av.VideoFrame | None = None
        for stamp, frame in self._track.frames(run, self._track.shown_at(run, times)):
            begins = self._track.seconds_at(stamp) - 1e-6
            if shown is not None:
                wanted = sum(time < begins for time in times[len(found) :])
                found += [self._cut(shown, choose, edge)] * wanted if wanted else []
            elif begins > times[0] and not run.from_start:
                return []
            shown = frame
            if len(found) == len(times):
                return found
        if shown is None:
            return []
        missing = len(times) - len(found)
        return found + [self._cut(shown, choose, edge)] * missing if missing else found

    def _cut(self, frame: "av.VideoFrame", choose: Callable[[int, int], Sequence[Box]], edge: int) -> NDArray[np.uint8]:
        filters = _upright_filters(frame)
        transposed = any(name == "transpose" for name, _ in filters)
        size = (frame.height, frame.width) if transposed else (frame.width, frame.height)
        parts = []
        for box in choose(*size):
            key = (frame.width, frame.height, frame.format.name, box)
            if key not in self._graphs:
                self._graphs[key] = self._graph(frame, filters, box, edge)
            self._graphs[key].push(frame)
            parts.append(self._graphs[key].vpull().to_ndarray())
        return np.stack(parts)

    def _graph(
        self, frame: "av.VideoFrame", filters: Sequence[tuple[str, str]], box: Box, edge: int
    ) -> "av.filter.Graph":
        from av.filter import Graph

        graph = Graph()
        place = f"{box.width}:{box.height}:{box.left}:{box.top}:exact=1"
        steps = (*filters, ("crop", place), ("scale", f"{edge}:{edge}:flags=area"), ("format", "rgb24"))
        nodes = [
            graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=self._track.stream.time_base
            ),
            *(graph.add(name, settings) for name, settings in steps),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*nodes).configure()
        return graph


def _upright_filters(frame: "av.VideoFrame") -> list[tuple[str, str]]:
    """Return name and arguments of the filters that rotate or mirror a frame upright."""
    try:
        given: Any = frame.side_data  # annotated with a single kind only
        xx, xy, _, yx, yy = np.frombuffer(given["DISPLAYMATRIX"], np.int32, 5).tolist()
    except (KeyError, ValueError):  # no display matrix, or other side data that PyAV does not know
        angle = math.radians(frame.rotation)  # counter-clockwise
        xx, xy, yx, yy = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    if abs(xy) + abs(yx) > abs(xx) + abs(yy):
        return [("transpose", TRANSPOSES[xy > 0, yx > 0])]
    return [(name, "") for name, negative in (("hflip", xx < 0), ("vflip", yy < 0)) if negative]
