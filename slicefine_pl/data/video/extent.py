"""How long the picture track of a video file is, and whether its data are all there.

Answers: when is the last frame over, and do the data of a clip reach as far as the header of the file says?

Seconds count from the first frame, as in ``track.py``.
"""

from typing import TYPE_CHECKING, Any

from slicefine_pl.data.video.track import FOREVER, Run, Track, UnreadableVideo, stamp_of

if TYPE_CHECKING:
    import av

SLACK = 0.5  # seconds by which a header may overstate the length of its data
HEADER = 8  # bytes before the data of an AVI chunk
MICRO = 1_000_000  # FFmpeg's unit of time for whole files, in a second
ESTIMATED = ("mpegts", "mpeg")  # FFmpeg takes the length of these from their data: no header promises any


def measure(track: Track) -> float:
    """Find when the last frame is over; where the data end too early, when it would be by the header.

    Raises:
        av.error.FFmpegError: The header is silent and the data are damaged.
    """
    from av.error import FFmpegError

    promised = _promised(track)
    estimate = promised or (track.stream.duration or 0) * track.base
    try:
        run = next(track.runs(track.stamp_at(estimate), FOREVER))
    except FFmpegError:
        if promised is None:
            raise
        return promised
    end = max((_end(track, packet) for packet in run.packets), default=0.0)
    if promised is None:
        return end
    if track.stream.duration is not None:
        return max(end, promised)
    return end if _data_end(track, run, promised) >= promised - SLACK else promised


def check_whole(track: Track, run: Run, until: float) -> None:
    """Make sure that no data of a run are missing: inside, or at the end of the file.

    Args:
        track: Where the run is from.
        run: What is about to be decoded.
        until: Last time that is wanted, in seconds.

    Raises:
        UnreadableVideo: Some are.
    """
    _check_index(track, run)
    promised = _promised(track)
    if promised is None or _read_until(track, run) >= min(until, promised - SLACK):
        return
    if (reached := _data_end(track, run, promised)) < promised - SLACK:
        raise UnreadableVideo(
            track.path, f"it is truncated: its data end at {reached:.1f} of the {promised:.1f} s its header promises"
        )


def _check_index(track: Track, run: Run) -> None:
    """Make sure that AVI chunks lie where the index has them: FFmpeg counts them, and passes over what is lost."""
    if track.container.format.name != "avi":
        return
    turns = {entry.pos + HEADER: entry.timestamp for entry in track.stream.index_entries}
    for packet in run.packets:
        if packet.pos in turns and turns[packet.pos] != packet.dts:
            raise UnreadableVideo(track.path, f"chunks are lost before {track.seconds_at(packet.dts or 0):.1f} s")


def _promised(track: Track) -> float | None:
    """Length by the header: of the picture track, or where that is silent (Matroska, FLV) of the whole file."""
    container, stream = track.container, track.stream
    if container.format.name in ESTIMATED:
        return None
    if stream.duration is not None:  # FFmpeg lowers it to what is left of a truncated AVI file, whose unit is a frame
        return max(stream.duration, stream.frames if container.format.name == "avi" else 0) * track.base
    if not container.duration:
        return None
    origin = (container.start_time or 0) / MICRO if container.format.name == "flv" else 0.0  # Matroska counts from zero
    return container.duration / MICRO - max(0.0, track.begin * track.base - origin)


def _read_until(track: Track, run: Run) -> float:
    """Until when a run surely has all frames: packets come in the order of decoding, so that time counts."""
    ends = [packet.dts + (packet.duration or 0) for packet in run.packets if packet.dts is not None]
    ends = ends or [stamp_of(packet) for packet in run.packets if packet.pts is not None]
    return track.seconds_at(max(ends, default=track.begin))


def _data_end(track: Track, run: Run, promised: float) -> float:
    """When the data end: those of the track, or where the promise is that of the file those of any track."""
    reached = max((_end(track, packet) for packet in run.packets), default=0.0)
    if track.stream.duration is not None or reached >= promised - SLACK:
        return reached
    track.container.seek(run.since, stream=track.stream)
    reached = max((_end(track, packet) for packet in track.container.demux()), default=reached)
    if reached < promised - SLACK:  # not every container that was read to its end can be sought
        track.reopen()
        reached = max((_end(track, packet) for packet in track.container.demux()), default=reached)
    return reached


def _end(track: Track, packet: "av.Packet[Any]") -> float:
    """When what a packet of any track shows is over."""
    stamp = packet.dts if packet.pts is None else packet.pts
    if stamp is None or packet.time_base is None or packet.is_discard:
        return 0.0
    return float((stamp + (packet.duration or 0)) * packet.time_base) - track.begin * track.base
