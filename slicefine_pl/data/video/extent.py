"""Measure the duration of a video stream, and check that no data of the file are missing.

Seconds count from the first frame, as in ``track.py``.
"""

from typing import TYPE_CHECKING, Any

from slicefine_pl.data.video.track import FOREVER, PacketRun, Track, UnreadableVideo, stamp_of

if TYPE_CHECKING:
    import av

TOLERANCE = 0.5  # seconds by which a header may overstate the duration
AVI_HEADER = 8  # bytes before the data of an AVI chunk
MICROSECONDS = 1_000_000  # per second; FFmpeg's unit of time for files
ESTIMATED = ("mpegts", "mpeg")  # no duration in the header: FFmpeg estimates it from the data


def measure_duration(track: Track) -> float:
    """Return the end of the last frame, in seconds. If the data end too early, return the duration in the header.

    Raises:
        av.error.FFmpegError: The header contains no duration, and the data are damaged.
    """
    from av.error import FFmpegError

    stated = _duration_in_header(track)
    estimate = stated or (track.stream.duration or 0) * track.base
    try:
        run = next(track.runs(track.stamp_at(estimate), FOREVER))
    except FFmpegError:
        if stated is None:
            raise
        return stated
    end = max((_end(track, packet) for packet in run.packets), default=0.0)
    if stated is None:
        return end
    if track.stream.duration is not None:
        return max(end, stated)
    return end if _data_end(track, run, stated) >= stated - TOLERANCE else stated


def check_complete(track: Track, run: PacketRun, until: float) -> None:
    """Check that no packets of a run are missing, neither inside nor at the end of the file.

    Args:
        track: The video stream.
        run: Packets that are about to be decoded.
        until: Last time that is needed, in seconds.

    Raises:
        UnreadableVideo: Packets are missing.
    """
    _check_index(track, run)
    stated = _duration_in_header(track)
    if stated is None or _read_until(track, run) >= min(until, stated - TOLERANCE):
        return
    if (reached := _data_end(track, run, stated)) < stated - TOLERANCE:
        raise UnreadableVideo(
            track.path, f"it is truncated: its data end at {reached:.1f} of the {stated:.1f} s in its header"
        )


def _check_index(track: Track, run: PacketRun) -> None:
    """Check that AVI chunks are where the index says. FFmpeg only counts chunks, and does not notice lost ones."""
    if track.container.format.name != "avi":
        return
    expected = {entry.pos + AVI_HEADER: entry.timestamp for entry in track.stream.index_entries}
    for packet in run.packets:
        if packet.pos in expected and expected[packet.pos] != packet.dts:
            raise UnreadableVideo(track.path, f"chunks are lost before {track.seconds_at(packet.dts or 0):.1f} s")


def _duration_in_header(track: Track) -> float | None:
    """Return the duration of the video stream in the header, or that of the file (Matroska, FLV), or ``None``."""
    container, stream = track.container, track.stream
    if container.format.name in ESTIMATED:
        return None
    if stream.duration is not None:  # for a truncated AVI file, FFmpeg lowers it; its unit is a frame
        return max(stream.duration, stream.frames if container.format.name == "avi" else 0) * track.base
    if not container.duration:
        return None
    origin = (
        (container.start_time or 0) / MICROSECONDS if container.format.name == "flv" else 0.0
    )  # Matroska starts at zero
    return container.duration / MICROSECONDS - max(0.0, track.begin * track.base - origin)


def _read_until(track: Track, run: PacketRun) -> float:
    """Return the time up to which a run has all frames. Packets are in decoding order, so decoding times count."""
    ends = [packet.dts + (packet.duration or 0) for packet in run.packets if packet.dts is not None]
    ends = ends or [stamp_of(packet) for packet in run.packets if packet.pts is not None]
    return track.seconds_at(max(ends, default=track.begin))


def _data_end(track: Track, run: PacketRun, stated: float) -> float:
    """Return when the data end: those of the video stream, or those of any stream if the header counts the file."""
    reached = max((_end(track, packet) for packet in run.packets), default=0.0)
    if track.stream.duration is not None or reached >= stated - TOLERANCE:
        return reached
    track.container.seek(run.since, stream=track.stream)
    reached = max((_end(track, packet) for packet in track.container.demux()), default=reached)
    if reached < stated - TOLERANCE:  # some containers cannot seek after they were read to the end
        track.reopen()
        reached = max((_end(track, packet) for packet in track.container.demux()), default=reached)
    return reached


def _end(track: Track, packet: "av.Packet[Any]") -> float:
    """Return the end of a packet of any stream, in seconds."""
    stamp = packet.dts if packet.pts is None else packet.pts
    if stamp is None or packet.time_base is None or packet.is_discard:
        return 0.0
    return float((stamp + (packet.duration or 0)) * packet.time_base) - track.begin * track.base
