"""The video stream of a file: where decoding must start to show a time, and when each decoded frame starts.

Containers store different things: some start at any time, some have no index, some have no presentation times. This
file hides the differences.

Seconds count from the first frame. A *stamp* is a presentation time as an integer in the time base of the stream.
"""

import errno
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # imported when a video is opened
    import av
    from av.video.stream import VideoStream

    Packet = av.Packet[VideoStream]

CONTAINERS = "mov,matroska,avi,mpegts,mpeg,asf,flv,ogg,mxf,gif,dv,nut,m4v,mpegvideo,h264,hevc,mjpeg,yuv4mpegpipe"
MAX_PIXELS = 36_000_000  # per frame; 8K has 33 or 35 million
OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
FOREVER = 1 << 62  # later than any stamp
MAX_REORDERED = 16  # packets that a codec may send before their turn
CAN_SKIP = ("h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video")  # decoders that can skip single frames
NOT_SEEKABLE = ("mpeg",)  # FFmpeg derives the times of program streams from where it started to read


class UnreadableVideo(ValueError):
    """A file cannot be decoded: it is truncated, damaged, or not a video."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"video {str(path)!r} cannot be read: {reason}; replace or remove the file.")
        self._arguments = (path, reason)

    def __reduce__(self) -> tuple[Any, ...]:
        """Make the error picklable, so that worker processes can pass it on."""
        return type(self), self._arguments


class PacketRun(NamedTuple):
    """Consecutive packets, from a key frame or from the start of the file.

    Attributes:
        packets: Packets in decoding order.
        warm_up: Number of packets at the start that only initialize the decoder. Errors in them are ignored.
        since: Stamp before which frames may be incomplete, because they refer to frames before the run.
        from_start: Whether the run starts at the start of the file.
    """

    packets: list["Packet"]
    warm_up: int
    since: int
    from_start: bool


class Track:
    """The first video stream of a file.

    Args:
        path: Path of the file.

    Attributes:
        stream: The video stream of PyAV.
        base: Time base of the stream, in seconds.
        begin: Stamp of the first frame.

    Raises:
        UnreadableVideo: The file contains no video stream, its container is not one of ``CONTAINERS``, or its frames
            have more than ``MAX_PIXELS`` pixels.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._strict = True
        self._open()
        self.base = float(self.stream.time_base or 0) or 1 / 25  # seconds
        self._counts_frames = False
        head = self._head()
        # AVI has no presentation times, and FFmpeg's guesses are wrong for H.264. Raw streams have no times at all.
        reorders = self.container.format.name == "avi" and self.stream.codec_context.has_b_frames
        self._counts_frames = reorders or any(stamp_of(packet) == FOREVER for packet in head[:1])
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
        streams = [stream for stream in self.container.streams.video if stream.codec_context is not None]
        if not streams:
            present = ", ".join(stream.type for stream in self.container.streams) or "no stream at all"
            self.container.close()
            raise UnreadableVideo(self.path, f"it has no video stream that can be decoded, but {present}")
        self.stream = streams[0]
        context = self.stream.codec_context
        if not 0 < context.width * context.height <= MAX_PIXELS:
            self.container.close()
            raise UnreadableVideo(self.path, f"its frames have more than {MAX_PIXELS:,} pixels, or no known size")
        context.thread_count = 1  # loaders run one process per core
        context.options = {"max_pixels": OPTIONS["max_pixels"]}  # in case the size changes later
        if self._strict:
            context.options |= {"err_detect": "explode"}  # raise errors instead of concealing them

    def stamp_at(self, seconds: float) -> int:
        """Return the last stamp that is not later than a time."""
        return int(seconds / self.base) + self.begin

    def seconds_at(self, stamp: int) -> float:
        """Return the time of a stamp."""
        return (stamp - self.begin) * self.base

    def runs(self, first: int, last: int) -> Iterator[PacketRun]:
        """Yield one to three runs that contain the frames shown from stamp ``first`` to ``last``.

        The first run starts at the last possible key frame. In most files it suffices. If frames refer to others before
        that key frame, decoding raises an error or its first frame is too late. Then try the next run, which starts one
        key frame earlier. The last run starts at the start of the file.
        """
        packets = self._from_key(first, last)
        start = stamp_of(packets[0]) if packets else FOREVER
        if start <= self.begin and packets[0].is_keyframe:
            yield PacketRun(packets, 0, self.begin, from_start=True)
            return
        if self.begin < start <= first:
            if not self._counts_frames:
                yield PacketRun(packets, 0, start, from_start=False)
            packets = self._from_key(start - 1, last)
            if start in (stamps := [stamp_of(packet) for packet in packets]):
                yield PacketRun(packets, stamps.index(start), start, from_start=False)
        yield self._run_from_start(last)

    def frames(self, run: PacketRun, wanted: AbstractSet[int] | None) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Decode a run.

        Args:
            run: One of ``runs``.
            wanted: Stamps of wanted frames. Others may be skipped. ``None`` decodes all.

        Yields:
            Stamp at which a frame starts, ascending, and the frame.

        Raises:
            av.error.FFmpegError: A packet is damaged, or refers to frames before the run.
        """
        from av.error import FFmpegError, InvalidDataError

        context, before = self.stream.codec_context, run.since
        # All frames before a key frame in decoding order are shown before it, so the frames since then can be counted.
        turns = iter(sorted(map(stamp_of, run.packets[run.warm_up :])) if self._counts_frames else ())
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

    def shown_at(self, run: PacketRun, times: Sequence[float]) -> set[int] | None:
        """Return the stamps of the frames shown at some times, or ``None`` if no frame can be skipped."""
        if self._counts_frames or self.stream.codec_context.codec.name not in CAN_SKIP:
            return None
        if any(packet.pts is None for packet in run.packets):
            return None
        stamps = sorted(stamp_of(packet) for packet in run.packets if not packet.is_discard)
        if not stamps:
            return None
        places = np.searchsorted([self.seconds_at(stamp) - 1e-6 for stamp in stamps], times, side="right") - 1
        return {stamps[max(0, place)] for place in places.tolist()}

    def _head(self) -> list["Packet"]:
        """Return the packets up to the one with which the decoder returns its first frame."""
        head: list[Packet] = []
        shown = 0
        for packet in self._read(FOREVER):
            head.append(packet)
            shown += not packet.is_discard  # removed by an edit list
            if shown > self.stream.codec_context.reorder_depth:
                break
        return head

    def _first_stamp(self, head: Sequence["Packet"]) -> int:
        """Return the stamp of the first frame that can be decoded and is not removed by an edit list.

        Raises:
            UnreadableVideo: The index starts with a key frame, and the data do not.
        """
        from av.error import FFmpegError

        stamps = [stamp_of(packet) for packet in head if not packet.is_discard]
        if self._counts_frames or not stamps:
            return (head[0].dts if head else self.stream.start_time) or 0
        if head[0].is_keyframe and all(stamp_of(head[0]) <= stamp < FOREVER for stamp in stamps):
            return min(stamps)
        keys = {entry.timestamp for entry in self.stream.index_entries if entry.is_keyframe}
        if not head[0].is_keyframe and head[0].dts in keys:
            raise UnreadableVideo(self.path, "its first frame is damaged")
        self._strict = False  # the file starts inside a group of pictures: missing references are not errors
        self.reopen()  # only decoding shows the first complete frame
        for packet in chain(self._read(FOREVER), [None]):
            try:
                decoded = self.stream.codec_context.decode(packet)
            except FFmpegError:
                continue
            if found := [frame.pts for frame in decoded if frame.pts is not None]:
                return found[0]
        return min(stamps)

    def _run_from_start(self, last: int) -> PacketRun:
        self.reopen()
        return PacketRun(list(self._read(last)), 0, self.begin, from_start=True)

    def _from_key(self, latest: int, last: int) -> list["Packet"]:
        """Return the packets from the last key frame at ``latest`` or before, else from the start of the file."""
        back = 0
        while latest - back > self.begin or not back:
            if found := _after_key(self._seek(latest - back, last), latest):
                return found
            back = 2 * back or round(1 / self.base)
        packets = self._run_from_start(last).packets
        return _after_key(packets, latest) or packets

    def reopen(self) -> None:
        """Go back to the start of the file. Not every container can seek there."""
        self.container.close()
        self._open()

    def _seek(self, stamp: int, last: int) -> list["Packet"]:
        """Return the packets from about a stamp to the last one needed at ``last``; empty if seeking is impossible."""
        from av.error import FFmpegError

        if self.container.format.name in NOT_SEEKABLE:
            return []
        try:
            self.container.seek(stamp, stream=self.stream)
        except FFmpegError:
            return []
        return list(self._read(last))

    def _read(self, last: int) -> Iterator["Packet"]:
        """Yield the packets from the current position to the last one needed at the stamp ``last``."""
        beyond = number = 0
        for packet in self.container.demux(self.stream):
            if not packet.size:
                continue
            if self._counts_frames:
                packet.pts = packet.dts = number * (packet.duration or 1) if packet.dts is None else packet.dts
            number += 1
            yield packet
            beyond += stamp_of(packet) > last
            decoded_later = packet.dts is not None and packet.dts > last and not self._counts_frames
            if decoded_later or beyond > MAX_REORDERED:
                return


def _after_key(packets: list["Packet"], latest: int) -> list["Packet"]:
    """Return the packets from the last key frame at ``latest`` or before; empty if there is no such key frame."""
    keys = [place for place, packet in enumerate(packets) if packet.is_keyframe and stamp_of(packet) <= latest]
    return packets[keys[-1] :] if keys else []


def stamp_of(packet: "Packet") -> int:
    """Return the stamp of a packet's frame, or ``FOREVER`` if the packet has none."""
    stamp = packet.dts if packet.pts is None else packet.pts
    return FOREVER if stamp is None else stamp


def reason_of(error: Exception) -> str:
    """Return the message of an error of FFmpeg or the system."""
    return str(getattr(error, "strerror", None) or error).rstrip(".")
