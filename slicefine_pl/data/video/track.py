"""The picture track of a video file: which packets show what is on show at a time, and when each frame begins.

Answers: where must decoding start, and at what time does a decoded frame begin?  Containers differ in what they store:
some begin at any time, some have no index, some store no times of presentation.  This file levels that out.

Seconds count from the first frame.  A *stamp* is a whole number in the unit of the track, as the file counts.
"""

import errno
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # imported where a video is opened: who has no videos needs no decoder
    import av
    from av.video.stream import VideoStream

    Packet = av.Packet[VideoStream]

CONTAINERS = "mov,matroska,avi,mpegts,mpeg,asf,flv,ogg,mxf,gif,dv,nut,m4v,mpegvideo,h264,hevc,mjpeg,yuv4mpegpipe"
MAX_PIXELS = 36_000_000  # of a frame: 8K has 33 or 35 million
OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
FOREVER = 1 << 62
REORDERING = 16  # most packets that a codec sends ahead of their turn
SKIPPING = ("h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video")  # decoders that leave out single pictures when asked
STARTING = ("mpeg",)  # FFmpeg derives the times of program streams from where it began to read


class UnreadableVideo(ValueError):
    """A file that gives no frames where it should: truncated, damaged, or no video at all."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"video {str(path)!r} cannot be read: {reason}; replace or remove the file.")
        self._cause = (path, reason)

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker process hands the error on by what made it."""
        return type(self), self._cause


class Run(NamedTuple):
    """Consecutive packets, from a key frame or from the start of the file.

    Attributes:
        packets: In the order of decoding.
        warm_up: How many packets at the start serve the decoder alone; what is wrong with them does no harm.
        since: Stamp before which frames may be incomplete, as they refer to pictures before the run.
        whole: Whether it begins where the file begins.
    """

    packets: list["Packet"]
    warm_up: int
    since: int
    whole: bool


class Track:
    """The first picture track of a file.

    Args:
        path: Of the file.

    Raises:
        UnreadableVideo: There is no picture track in it, it is in none of the ``CONTAINERS``, or its frames have
            more than ``MAX_PIXELS``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._strict = True
        self._open()
        self.base = float(self.stream.time_base or 0) or 1 / 25  # seconds
        self._counts = False
        head = self._head()
        # AVI stores no times of presentation, and FFmpeg's guesses are wrong for H.264; raw streams store none at all.
        reorders = self.container.format.name == "avi" and self.stream.codec_context.has_b_frames
        self._counts = reorders or any(stamp_of(packet) == FOREVER for packet in head[:1])
        self.begin = self._first_stamp(head)

    def _open(self) -> None:
        import av
        from av.error import ArgumentError, FFmpegError

        try:
            self.container = av.open(str(self.path), metadata_errors="replace", options=OPTIONS)
        except ArgumentError as error:
            raise UnreadableVideo(self.path, f"its content is in none of the containers {CONTAINERS}") from error
        except (FFmpegError, OSError) as error:
            raise UnreadableVideo(self.path, reason_of(error)) from error
        pictures = [stream for stream in self.container.streams.video if stream.codec_context is not None]
        if not pictures:
            tracks = ", ".join(stream.type for stream in self.container.streams) or "no track at all"
            self.container.close()
            raise UnreadableVideo(self.path, f"it has no picture track that can be decoded, but {tracks}")
        self.stream = pictures[0]
        context = self.stream.codec_context
        if not 0 < context.width * context.height <= MAX_PIXELS:
            self.container.close()
            raise UnreadableVideo(self.path, f"its frames have more than {MAX_PIXELS:,} pixels, or no known size")
        context.thread_count = 1  # loaders run one process a core
        context.options = {"max_pixels": OPTIONS["max_pixels"]}  # where the size changes later on
        if self._strict:
            context.options |= {"err_detect": "explode"}  # an error, not a picture that covers it up

    def stamp_at(self, seconds: float) -> int:
        """The last stamp that is not later."""
        return int(seconds / self.base) + self.begin

    def seconds_at(self, stamp: int) -> float:
        """Time of a stamp."""
        return (stamp - self.begin) * self.base

    def runs(self, first: int, last: int) -> Iterator[Run]:
        """Yield runs that hold what is on show from stamp ``first`` to ``last``, one, two or three.

        The first begins with the last key frame that will do; in most files it gives the frames.  Where it gives an
        error, or its first frame comes too late, because pictures refer to others before the key frame, the next is to
        be tried: it begins one key frame earlier.  The last begins where the file does.
        """
        packets = self._from_key(first, last)
        start = stamp_of(packets[0]) if packets else FOREVER
        if start <= self.begin and packets[0].is_keyframe:
            yield Run(packets, 0, self.begin, whole=True)
            return
        if self.begin < start <= first:
            if not self._counts:
                yield Run(packets, 0, start, whole=False)
            packets = self._from_key(start - 1, last)
            if start in (stamps := [stamp_of(packet) for packet in packets]):
                yield Run(packets, stamps.index(start), start, whole=False)
        yield self._whole_run(last)

    def frames(self, run: Run, wanted: AbstractSet[int] | None) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Decode a run.

        Args:
            run: One of ``runs``.
            wanted: Stamps of frames that are wanted, others may be left out; ``None`` wants all.

        Yields:
            The stamp at which a frame begins, ascending, and the frame.

        Raises:
            av.error.FFmpegError: A packet is damaged, or refers to pictures before the run.
        """
        from av.error import FFmpegError, InvalidDataError

        context, before = self.stream.codec_context, run.since
        # A key frame parts the packets before it from all others in time too, so the frames since then can be counted.
        turns = iter(sorted(map(stamp_of, run.packets[run.warm_up :])) if self._counts else ())
        for number, packet in enumerate(chain(run.packets, [None])):
            early = packet is not None and (number < run.warm_up or stamp_of(packet) < run.since)
            if packet is not None:
                context.skip_frame = "DEFAULT" if wanted is None or packet.pts in wanted else "NONREF"
            try:
                if packet is not None and packet.is_corrupt:
                    raise InvalidDataError(errno.EINVAL, f"damaged data at {self.seconds_at(stamp_of(packet)):.1f} s")
                decoded = context.decode(packet)
            except FFmpegError:
                if early:
                    continue
                raise
            for frame in decoded:
                stamp = before + (frame.duration or 0) if frame.pts is None else frame.pts
                if stamp >= run.since:
                    before = next(turns, stamp)
                    yield before, frame

    def on_show(self, run: Run, times: Sequence[float]) -> set[int] | None:
        """Stamps of the frames on show at some times; ``None`` where packets do not tell, or the decoder skips none."""
        if self._counts or self.stream.codec_context.codec.name not in SKIPPING:
            return None
        if any(packet.pts is None for packet in run.packets):
            return None
        stamps = sorted(stamp_of(packet) for packet in run.packets if not packet.is_discard)
        if not stamps:
            return None
        places = np.searchsorted([self.seconds_at(stamp) - 1e-6 for stamp in stamps], times, side="right") - 1
        return {stamps[max(0, place)] for place in places.tolist()}

    def _head(self) -> list["Packet"]:
        """Packets up to the one with which the decoder gives its first frame."""
        head: list[Packet] = []
        shown = 0
        for packet in self._read(FOREVER):
            head.append(packet)
            shown += not packet.is_discard  # edit lists discard what they cut off
            if shown > self.stream.codec_context.reorder_depth:
                break
        return head

    def _first_stamp(self, head: Sequence["Packet"]) -> int:
        """When the first frame begins that can be decoded and is not cut off by an edit list.

        Raises:
            UnreadableVideo: The index has a key frame first, and the data have none.
        """
        from av.error import FFmpegError

        stamps = [stamp_of(packet) for packet in head if not packet.is_discard]
        if self._counts or not stamps:
            return (head[0].dts if head else self.stream.start_time) or 0
        if head[0].is_keyframe and all(stamp_of(head[0]) <= stamp < FOREVER for stamp in stamps):
            return min(stamps)
        keys = {entry.timestamp for entry in self.stream.index_entries if entry.is_keyframe}
        if not head[0].is_keyframe and head[0].dts in keys:
            raise UnreadableVideo(self.path, "its first picture is damaged")
        self._strict = False  # it begins in the midst of a group of pictures: references are missing though all is well
        self.reopen()  # only the decoder knows
        for packet in chain(self._read(FOREVER), [None]):
            try:
                decoded = self.stream.codec_context.decode(packet)
            except FFmpegError:
                continue
            if found := [frame.pts for frame in decoded if frame.pts is not None]:
                return found[0]
        return min(stamps)

    def _whole_run(self, last: int) -> Run:
        self.reopen()
        return Run(list(self._read(last)), 0, self.begin, whole=True)

    def _from_key(self, latest: int, last: int) -> list["Packet"]:
        """Packets from the last key frame at ``latest`` or before; where there is none, from the start of the file."""
        back = 0
        while latest - back > self.begin or not back:
            if found := _after_key(self._sought(latest - back, last), latest):
                return found
            back = 2 * back or round(1 / self.base)
        packets = self._whole_run(last).packets
        return _after_key(packets, latest) or packets

    def reopen(self) -> None:
        """Go back to the start of the file; not every container can seek there."""
        self.container.close()
        self._open()

    def _sought(self, stamp: int, last: int) -> list["Packet"]:
        """Packets from about a stamp to the last that can matter at ``last``; none where the file cannot be sought."""
        from av.error import FFmpegError

        if self.container.format.name in STARTING:
            return []
        try:
            self.container.seek(stamp, stream=self.stream)
        except FFmpegError:
            return []
        return list(self._read(last))

    def _read(self, last: int) -> Iterator["Packet"]:
        """Packets from where the container stands to the last that can matter at the stamp ``last``."""
        beyond = number = 0
        for packet in self.container.demux(self.stream):
            if not packet.size:
                continue
            if self._counts:
                packet.pts = packet.dts = number * (packet.duration or 1) if packet.dts is None else packet.dts
            number += 1
            yield packet
            beyond += stamp_of(packet) > last
            surely = packet.dts is not None and packet.dts > last and not self._counts
            if surely or beyond > REORDERING:
                return


def _after_key(packets: list["Packet"], latest: int) -> list["Packet"]:
    """Packets from the last key frame at ``latest`` or before; none where there is none."""
    keys = [place for place, packet in enumerate(packets) if packet.is_keyframe and stamp_of(packet) <= latest]
    return packets[keys[-1] :] if keys else []


def stamp_of(packet: "Packet") -> int:
    """When a packet's frame begins, as far as it says so."""
    stamp = packet.dts if packet.pts is None else packet.pts
    return FOREVER if stamp is None else stamp


def reason_of(error: Exception) -> str:
    """What an error of FFmpeg or the system says."""
    return str(getattr(error, "strerror", None) or error).rstrip(".")
