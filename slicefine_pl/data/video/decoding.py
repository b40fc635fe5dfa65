"""Frames of a video file at given times, cut and scaled, decoded with PyAV.

Answers: what does the picture show at time t?  Only packets from the last key frame before the clip on are decoded,
pictures that nothing refers to and nobody wants are not decoded at all, and only wanted frames are cut, scaled and
converted, by FFmpeg's own filters.  Sound is never touched.

Shapes:  K boxes · T times · S edge of the square output, in pixels
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # imported where a video is opened: who has no videos needs no decoder
    import av
    import av.filter
    from av.video.stream import VideoStream

FOREVER = 1 << 62
TURNS = {90: (("transpose", "cclock"),), 180: (("hflip", ""), ("vflip", "")), 270: (("transpose", "clock"),)}
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,asf,flv,ogg,mxf,gif,dv,nut,m4v,mpegvideo,h264,hevc,mjpeg,yuv4mpegpipe"
MAX_PIXELS = 36_000_000  # of a frame: 8K has 33 or 35 million
OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
SLACK = 0.5  # seconds by which a header may overstate the length of its data


class UnreadableVideo(ValueError):
    """A file that gives no frames where it should: truncated, damaged, or no video at all."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"video {str(path)!r} cannot be read: {reason}; replace or remove the file.")
        self._cause = (path, reason)

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker process hands the error on by what made it."""
        return type(self), self._cause


class Box(NamedTuple):
    """A part of the upright picture, in pixels."""

    left: int
    top: int
    width: int
    height: int


class Video:
    """An open video file, upright whatever way the camera was held.

    Times are in seconds from the first frame.  The frame at time t is the one on show then: the last that begins at t
    or before, also with a variable frame rate; after the end it is the last frame.

    Only containers that hold their own pictures are opened, whatever the file is called: not playlists, which make
    FFmpeg open other files.

    Args:
        path: Of the file, in one of the ``CONTAINERS`` and any codec that FFmpeg knows.

    Raises:
        UnreadableVideo: There is no video in it, or its frames have more than ``MAX_PIXELS``.
    """

    def __init__(self, path: str | Path) -> None:
        import av
        from av.error import ArgumentError, FFmpegError

        self.path = Path(path)
        try:
            self._container = av.open(str(path), metadata_errors="replace", options=OPTIONS)
        except ArgumentError as error:
            raise UnreadableVideo(self.path, f"its content is in none of the containers {CONTAINERS}") from error
        except (FFmpegError, OSError) as error:
            raise UnreadableVideo(self.path, _reason(error)) from error
        pictures = [stream for stream in self._container.streams.video if stream.codec_context is not None]
        if not pictures:
            tracks = ", ".join(stream.type for stream in self._container.streams) or "no track at all"
            self._container.close()
            raise UnreadableVideo(self.path, f"it has no picture track that can be decoded, but {tracks}")
        self._stream = pictures[0]
        self._stream.codec_context.options = {"max_pixels": OPTIONS["max_pixels"]}  # where the size changes later on
        if not 0 < self._stream.width * self._stream.height <= MAX_PIXELS:
            self._container.close()
            raise UnreadableVideo(self.path, f"its frames have more than {MAX_PIXELS:,} pixels, or no known size")
        self._stream.codec_context.thread_count = 1  # loaders run one process a core
        self._begin = self._stream.start_time or 0
        self._graphs: dict[tuple[int, int, str, Box], av.filter.Graph] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    @property
    def seconds(self) -> float:
        """Length by the header, or where that is silent by counting through the packets.

        Raises:
            UnreadableVideo: The data are damaged.
        """
        from av.error import FFmpegError

        if (promised := self._promised()) is not None:
            return promised
        try:
            stamps = [packet.pts for packet in self._packets(0, FOREVER) if packet.pts is not None]
        except FFmpegError as error:
            raise UnreadableVideo(self.path, _reason(error)) from error
        return self._seconds(max(stamps, default=self._begin))

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
            raise UnreadableVideo(self.path, _reason(error)) from error

    def _decode(
        self, times: Sequence[float], choose: Callable[[int, int], Sequence[Box]], edge: int
    ) -> NDArray[np.uint8]:
        found: list[NDArray[np.uint8]] = []
        shown: av.VideoFrame | None = None
        for frame in self._between(times):
            assert frame.pts is not None  # _between leaves those out
            begins = self._seconds(frame.pts) - 1e-6
            if shown is not None:
                wanted = sum(time < begins for time in times[len(found) :])
                found += [self._cut(shown, choose, edge)] * wanted if wanted else []
            shown = frame
            if len(found) == len(times):
                break
        if shown is None:
            raise UnreadableVideo(self.path, "it holds no frame that can be decoded")
        if missing := len(times) - len(found):
            found += [self._cut(shown, choose, edge)] * missing
        return np.stack(found, axis=1)

    def _between(self, times: Sequence[float]) -> Iterator["av.VideoFrame"]:
        """Decode from the frame on show at the first time to that at the last, in order of time."""
        first, last = (int(time / self._base()) + self._begin for time in (times[0], times[-1]))
        packets = list(self._packets(first, last))
        if first > self._begin and packets and (packets[0].pts or 0) > first:  # an index that leads astray
            packets = list(self._packets(0, last))
        self._check_whole(packets, first, times[-1])
        needed = self._needed(packets, times)
        context = self._stream.codec_context
        for packet in packets:
            context.skip_frame = "DEFAULT" if needed is None or packet.pts in needed else "NONREF"
            yield from (frame for frame in context.decode(packet) if frame.pts is not None)
        yield from (frame for frame in context.decode(None) if frame.pts is not None)

    def _packets(self, first: int, last: int) -> Iterator["av.Packet[VideoStream]"]:
        """Packets from the key frame before ``first`` to the last that can matter at ``last``, in stream units."""
        self._container.seek(first, stream=self._stream)
        for packet in self._container.demux(self._stream):
            stamp = packet.pts if packet.dts is None else packet.dts
            if stamp is None:  # the end
                return
            yield packet
            if stamp > last:
                return

    def _needed(self, packets: Sequence["av.Packet[VideoStream]"], times: Sequence[float]) -> set[int] | None:
        """Time stamps of the frames on show, and of the one after; ``None`` where packets do not tell (AVI)."""
        stamps = [packet.pts for packet in packets if packet.pts is not None]
        if not stamps or len(stamps) < len(packets):
            return None
        stamps.sort()
        places = np.searchsorted([self._seconds(stamp) - 1e-6 for stamp in stamps], times, side="right") - 1
        return {stamps[max(0, place)] for place in places.tolist()}

    def _check_whole(self, packets: Sequence["av.Packet[VideoStream]"], first: int, until: float) -> None:
        promised = self._promised()
        if promised is None or any(self._end(packet) >= min(until, promised) - SLACK for packet in reversed(packets)):
            return
        reached = max(map(self._end, packets), default=0.0)
        if self._stream.duration is None:  # a promise of the whole file's: the sound may keep it
            self._container.seek(first, stream=self._stream)
            reached = max(map(self._end, self._container.demux()), default=reached)
        if reached < promised - SLACK:
            raise UnreadableVideo(
                self.path, f"it is truncated: its data end at {reached:.1f} of the {promised:.1f} s its header promises"
            )

    def _end(self, packet: "av.Packet[Any]") -> float:
        """When what a packet holds is over."""
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None or packet.time_base is None:
            return 0.0
        return float((stamp + (packet.duration or 0)) * packet.time_base) + self._seconds(0)

    def _cut(self, frame: "av.VideoFrame", choose: Callable[[int, int], Sequence[Box]], edge: int) -> NDArray[np.uint8]:
        turn = round(frame.rotation / 90) * 90 % 360
        size = (frame.width, frame.height) if turn in (0, 180) else (frame.height, frame.width)
        parts = []
        for box in choose(*size):
            key = (frame.width, frame.height, frame.format.name, box)
            if key not in self._graphs:
                self._graphs[key] = self._graph(frame, turn, box, edge)
            self._graphs[key].push(frame)
            parts.append(self._graphs[key].vpull().to_ndarray())
        return np.stack(parts)

    def _graph(self, frame: "av.VideoFrame", turn: int, box: Box, edge: int) -> "av.filter.Graph":
        from av.filter import Graph

        graph = Graph()
        place = f"{box.width}:{box.height}:{box.left}:{box.top}:exact=1"
        filters = (*TURNS.get(turn, ()), ("crop", place), ("scale", f"{edge}:{edge}:flags=area"), ("format", "rgb24"))
        steps = [
            graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=self._stream.time_base
            ),
            *(graph.add(name, settings) for name, settings in filters),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*steps).configure()
        return graph

    def _promised(self) -> float | None:
        """Length by the header: of the picture track, or where that is silent (Matroska) of the whole file."""
        if self._stream.duration is not None:
            return float(self._stream.duration * self._base())
        return self._container.duration / 1_000_000 if self._container.duration else None  # in FFmpeg's own unit

    def _seconds(self, stamp: int) -> float:
        return float((stamp - self._begin) * self._base())

    def _base(self) -> float:
        return float(self._stream.time_base or 0) or 1 / 25


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).rstrip(".")
