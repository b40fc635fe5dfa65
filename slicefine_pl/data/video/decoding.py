"""Frames of a video file at given times, cut and scaled, decoded with PyAV.

Answers: what does the picture show at time t?  Only packets from the last key frame before the clip on are decoded,
pictures that nothing refers to and nobody wants are not decoded at all, and only wanted frames are cut, scaled and
converted, by FFmpeg's own filters.  Sound is never touched.

Shapes:  K boxes · T times · S edge of the square output, in pixels
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from slicefine_pl.data.video.extent import check_whole, measure
from slicefine_pl.data.video.track import Run, Track, UnreadableVideo, reason_of

if TYPE_CHECKING:  # imported where a video is opened: who has no videos needs no decoder
    import av
    import av.filter

# By whether the display matrix sends x to +y, and y to +x.
TURNS = {(True, True): "cclock_flip", (True, False): "clock", (False, True): "cclock", (False, False): "clock_flip"}


class Box(NamedTuple):
    """A part of the upright picture, in pixels."""

    left: int
    top: int
    width: int
    height: int


class Video:
    """An open video file, upright whatever way the camera was held.

    Times are in seconds from the first frame that can be decoded and that no edit list cuts off.  The frame at time t
    is the one on show then: the last that begins at t or before, also with a variable frame rate; after the end it is
    the last frame.

    **Limits.** Pixels are taken as stored: not stretched where they are not square, and with both fields of interlaced
    video.

    Only containers that hold their own pictures are opened, whatever the file is called: not playlists, which make
    FFmpeg open other files.

    Args:
        path: Of the file, in one of the ``CONTAINERS`` and any codec that FFmpeg knows.

    Raises:
        UnreadableVideo: There is no video in it, or its frames have more than ``MAX_PIXELS``.
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
        """Length of the picture track; of a truncated file the length that its header promises.

        Raises:
            UnreadableVideo: The data are damaged.
        """
        from av.error import FFmpegError

        try:
            if self._seconds is None:
                self._seconds = measure(self._track)
            return self._seconds
        except FFmpegError as error:
            raise UnreadableVideo(self.path, reason_of(error)) from error

    def frames(
        self, times: Sequence[float], choose: Callable[[int, int], Sequence[Box]], edge: int
    ) -> NDArray[np.uint8]:
        """Decode the frames on show at some times.

        Args:
            times: Ascending, in seconds.
            choose: Gives the K boxes to cut out of an upright picture of some width and height.
            edge: Width and height to which each box is scaled (S).

        Returns:
            RGB, shape ``(K, T, S, S, 3)``.

        Raises:
            UnreadableVideo: The data are damaged, or end before the header says.
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
            check_whole(self._track, run, times[-1])
            try:
                found = self._pick(run, times, choose, edge)
            except FFmpegError:
                if attempt or run.whole:
                    raise
                continue
            if found:
                return np.stack(found, axis=1)
        raise UnreadableVideo(self.path, "it contains no frame that can be decoded")

    def _pick(
        self, run: Run, times: Sequence[float], choose: Callable[[int, int], Sequence[Box]], edge: int
    ) -> list[NDArray[np.uint8]]:
        """What is on show at each time, shape ``(K, S, S, 3)``; empty where the run begins too late."""
        found: list[NDArray[np.uint8]] = []
        shown: av.VideoFrame | None = None
        for stamp, frame in self._track.frames(run, self._track.on_show(run, times)):
            begins = self._track.seconds_at(stamp) - 1e-6
            if shown is not None:
                wanted = sum(time < begins for time in times[len(found) :])
                found += [self._cut(shown, choose, edge)] * wanted if wanted else []
            elif begins > times[0] and not run.whole:
                return []
            shown = frame
            if len(found) == len(times):
                return found
        if shown is None:
            return []
        missing = len(times) - len(found)
        return found + [self._cut(shown, choose, edge)] * missing if missing else found

    def _cut(self, frame: "av.VideoFrame", choose: Callable[[int, int], Sequence[Box]], edge: int) -> NDArray[np.uint8]:
        upright = _upright(frame)
        lies = any(name == "transpose" for name, _ in upright)
        size = (frame.height, frame.width) if lies else (frame.width, frame.height)
        parts = []
        for box in choose(*size):
            key = (frame.width, frame.height, frame.format.name, box)
            if key not in self._graphs:
                self._graphs[key] = self._graph(frame, upright, box, edge)
            self._graphs[key].push(frame)
            parts.append(self._graphs[key].vpull().to_ndarray())
        return np.stack(parts)

    def _graph(
        self, frame: "av.VideoFrame", upright: Sequence[tuple[str, str]], box: Box, edge: int
    ) -> "av.filter.Graph":
        from av.filter import Graph

        graph = Graph()
        place = f"{box.width}:{box.height}:{box.left}:{box.top}:exact=1"
        filters = (*upright, ("crop", place), ("scale", f"{edge}:{edge}:flags=area"), ("format", "rgb24"))
        steps = [
            graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=self._track.stream.time_base
            ),
            *(graph.add(name, settings) for name, settings in filters),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*steps).configure()
        return graph


def _upright(frame: "av.VideoFrame") -> list[tuple[str, str]]:
    """The filters that show a frame the way the camera was held, turned or mirrored."""
    try:
        given: Any = frame.side_data  # its annotation names one kind alone
        xx, xy, _, yx, yy = np.frombuffer(given["DISPLAYMATRIX"], np.int32, 5).tolist()
    except (KeyError, ValueError):  # there is none, or other side data beside it that PyAV does not know
        turn = math.radians(frame.rotation)  # counter-clockwise
        xx, xy, yx, yy = math.cos(turn), -math.sin(turn), math.sin(turn), math.cos(turn)
    if abs(xy) + abs(yx) > abs(xx) + abs(yy):
        return [("transpose", TURNS[xy > 0, yx > 0])]
    return [(name, "") for name, negative in (("hflip", xx < 0), ("vflip", yy < 0)) if negative]
