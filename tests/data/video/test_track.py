"""The frame shown at any time, in many containers, compared with decoding the whole file."""

import struct

import av
import numpy as np
import pytest
from helpers import films

from slicefine_pl.data.video.decoding import Box, Video

FRAMES = 48
B = {"bf": "2", "b_strategy": "0"}
CLOSED = {"x264-params": "bframes=2:b-adapt=0:keyint=12:min-keyint=12:scenecut=0"}
OPEN = {"x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=12:min-keyint=12:scenecut=0"}
REFRESHED = {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}
HEVC = {"x265-params": "log-level=none:keyint=12:open-gop=1:bframes=3"}
CYCLE = 2**33 // 90  # milliseconds after which the time stamps of a transport stream restart


def film(path, frames=FRAMES, codec="libx264", **settings):
    return films.film(path, frames, codec, draw=films.bars, **settings)


def shown(path, times):
    """Which frame is shown at each time."""
    with Video(path) as video:
        return films.read(video.frames(times, lambda width, height: [Box(0, 0, width, height)], films.WIDTH)[0])


def check_seeks(path, frames, tries=12):
    """Clips from anywhere show what ``frames``, (seconds, number) of each, have on show."""
    rng = np.random.default_rng(0)
    end = frames[-1][0]
    starts = [0.0, end, *rng.uniform(0, end, tries)]
    for start in starts:
        times = [start + 0.1 * step for step in range(5)]
        assert shown(path, times) == films.on_show(frames, times), start


@pytest.mark.parametrize(
    ("name", "codec", "options", "start"),
    [
        *((name, "libx264", CLOSED, 5000) for name in ("late.mp4", "late.mkv", "late.ts", "late.flv")),
        ("late.webm", "libvpx", {}, 600_000),
        ("negative.mkv", "libx264", CLOSED, -700),
        ("cut_by_edit_list.mp4", "libx264", CLOSED, -700),
        ("begins_anew.ts", "libx264", CLOSED, CYCLE - 2000),
        *((name, "libx264", OPEN, 0) for name in ("open.mp4", "open.mkv", "open.ts")),
        ("open.mkv", "libx265", HEVC, 0),
        ("refreshed.ts", "libx264", REFRESHED, 0),
        ("program.mpg", "mpeg2video", B, None),
        ("transport.ts", "mpeg2video", B, None),
        ("av1.mp4", "libsvtav1", {"svtav1-params": "keyint=12"}, 0),
        ("windows.wmv", "wmv2", {}, None),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_any_clip_equals_a_decode_of_the_whole_file(tmp_path, monkeypatch, name, codec, options, start):
    """Wherever time stamps begin, key frames lie, and pictures refer to."""
    if codec == "mpeg2video":
        monkeypatch.setattr(films, "RATE", 25)
    stamps = None if start is None else [start + 100 * number for number in range(FRAMES)]
    path = film(tmp_path / name, FRAMES, codec, stamps=stamps, options=options)
    frames = films.linear(path)
    assert [number for _, number in frames] == list(range(FRAMES))[-len(frames) :]
    check_seeks(path, frames)
    with Video(path) as video:
        assert video.seconds == pytest.approx(frames[-1][0] + 0.1, abs=0.11)


def sorted_names():
    """n-th frame from n tenths of a second on."""
    return [(number / 10, number) for number in range(FRAMES)]


@pytest.mark.parametrize(
    ("codec", "options"),
    [("mpeg4", {}), ("mpeg4", B), ("libx264", {"bf": "0"}), ("libx264", CLOSED), ("libx264", OPEN)],
)
@pytest.mark.parametrize("index", [True, False])
def test_avi_stores_no_times_and_its_frames_are_counted(tmp_path, codec, options, index):
    path = film(tmp_path / "film.avi", FRAMES, codec, options=options)
    if not index:
        content = path.read_bytes()
        path.write_bytes(content[: content.rindex(b"idx1")])
    check_seeks(path, sorted_names())


def test_avi_with_two_pictures_in_one_chunk(tmp_path):
    """As DivX and XviD write B-frames: the chunk of a P-frame brings the B-frame too, and an empty one follows."""
    source, path = film(tmp_path / "b.avi", FRAMES, "mpeg4", options={**B, "bf": "1"}), tmp_path / "packed.avi"
    mark, empty = b"\x00\x00\x01\xb2DivX503b1393p\x00", bytes([0, 0, 1, 0xB6, 0x50, 0x0F, 0xFF])
    with av.open(str(source)) as given, av.open(str(path), "w") as written:
        packets = [packet for packet in given.demux(video=0) if packet.size]
        contents = [bytes(packet) for packet in packets]
        is_b = [content[content.index(b"\x00\x00\x01\xb6") + 4] >> 6 == 2 for content in contents]
        chunks = []
        for place, content in enumerate(contents):
            follows = place + 1 < len(contents) and is_b[place + 1]
            chunks.append(empty if is_b[place] else content + (contents[place + 1] if follows else b""))
        start = min(chunks[0].find(b"\x00\x00\x01" + kind) for kind in (b"\xb3", b"\xb6") if kind in chunks[0])
        chunks[0] = chunks[0][:start] + mark + chunks[0][start:]
        stream = written.add_stream_from_template(given.streams.video[0])
        for number, (chunk, packet) in enumerate(zip(chunks, packets, strict=True)):
            new = av.Packet(chunk)
            new.pts = new.dts = number
            new.time_base, new.stream, new.is_keyframe = packet.time_base, stream, packet.is_keyframe
            written.mux(new)
    assert any(is_b)
    check_seeks(path, sorted_names())


def test_a_raw_stream_stores_no_times_at_all(tmp_path):
    path = film(tmp_path / "film.h264", FRAMES, options=CLOSED)
    check_seeks(path, sorted_names(), tries=4)


@pytest.mark.parametrize("options", [CLOSED, OPEN])
@pytest.mark.parametrize(("first", "many"), [(7, 30), (12, 20), (13, 5), (1, 47)])
def test_pictures_that_an_edit_list_cuts_off_are_not_shown(tmp_path, options, first, many):
    """What a phone's trimming leaves in the file, before and behind the part that it shows."""
    path = film(tmp_path / "film.mp4", FRAMES, options=options)
    content = bytearray(path.read_bytes())
    [entry] = [content.index(b"elst") + 12]
    whole, begin = struct.unpack_from(">Ii", content, entry)  # milliseconds, and the unit of the track: 1 / 10,240 s
    assert whole == 100 * FRAMES
    struct.pack_into(">Ii", content, entry, 100 * many, begin + 1024 * first)
    path.write_bytes(content)
    frames = films.linear(path)
    assert [number for _, number in frames] == list(range(first, first + many))
    check_seeks(path, frames, tries=6)
    with Video(path) as video:
        assert video.seconds == pytest.approx(many / 10, abs=0.01)


@pytest.mark.parametrize(("codec", "options"), [("libx264", CLOSED), ("libx264", OPEN), ("mpeg2video", B)])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_a_recording_that_begins_between_key_frames(tmp_path, monkeypatch, codec, options, share):
    """Time counts from the first picture that can be decoded."""
    if codec == "mpeg2video":
        monkeypatch.setattr(films, "RATE", 25)
    path = film(tmp_path / "film.ts", FRAMES, codec, options=options)
    content = path.read_bytes()
    tables, start = content[: 3 * 188], int(share * len(content)) // 188 * 188
    path.write_bytes(tables + content[start:])
    frames = films.linear(path)
    assert frames[0][1] > 0
    check_seeks(path, frames, tries=6)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_variable_frame_rate_with_pictures_out_of_order(tmp_path, suffix):
    stamps = [0, 100, 150, 700, 1500, 1600, 1650, 1700, 2900, 3000]
    path = film(tmp_path / f"film.{suffix}", len(stamps), stamps=stamps, options=CLOSED)
    check_seeks(path, [(stamp / 1000, number) for number, stamp in enumerate(stamps)])
    with Video(path) as video:
        assert video.seconds == pytest.approx(3.0, abs=0.2)  # the header of this MP4 says 1.95
