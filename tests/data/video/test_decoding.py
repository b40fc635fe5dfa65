"""Video.frames on files whose frames show their number, and compared with decoding the whole file."""

import pickle
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import films

from slicefine_pl.data.video import track
from slicefine_pl.data.video.decoding import Box, UnreadableVideo, Video


def left(width, height):
    """The left upper square."""
    return [Box(0, 0, min(width, height), min(width, height))]


def numbers(path, times):
    """Which frame is shown at each time, read off its gray."""
    with Video(path) as video:
        grays = video.frames(times, left, 8)[0, :, 4, 1, 0].astype(float)
    return [round((gray - 9.5) / 4) for gray in grays]


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9")])
def test_the_frame_at_a_time_is_the_one_on_show(tmp_path, suffix, codec):
    """At 10 frames per second frame n is on show from n / 10 on; the last is held."""
    path = films.film(tmp_path / f"film.{suffix}", codec=codec)
    times = [0.0, 0.05, 0.1, 1.0, 1.19, 1.21, 2.85, 2.95, 7.0]
    assert numbers(path, times) == [0, 0, 1, 10, 11, 12, 28, 29, 29]
    assert numbers(path, [1.55, 1.6, 1.6]) == [15, 16, 16]  # after a seek, and one frame twice
    with Video(path) as video:
        assert video.seconds == pytest.approx(3.0, abs=0.02)


def test_avi_which_stores_no_times(tmp_path):
    path = films.film(tmp_path / "film.avi", codec="mpeg4")
    assert numbers(path, [0.05, 1.05, 2.05, 2.95]) == [0, 10, 20, 29]


def test_variable_frame_rate(tmp_path):
    path = films.film(tmp_path / "film.mp4", 6, stamps=[0, 100, 150, 700, 1500, 1600])
    assert numbers(path, [0.0, 0.12, 0.2, 0.69, 0.71, 1.55, 3.0]) == [0, 1, 2, 2, 3, 4, 5]


def test_pictures_are_those_of_a_full_decode_bit_for_bit(tmp_path):
    """Skipping frames that are not requested does not change the requested ones."""
    rng = np.random.default_rng(0)
    path = tmp_path / "noise.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "12", "bf": "3"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rng.integers(0, 255, (48, 64, 3), np.uint8))))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    wanted = [3, 7, 20, 21, 38]
    with Video(path) as video:
        found = video.frames([number / 25 + 0.01 for number in wanted], left, 48)[0]
    np.testing.assert_array_equal(found, np.stack([every[number][:, :48] for number in wanted]))


def test_boxes_are_cut_and_scaled(tmp_path):
    """The right half is 40 brighter: a box there shows it, and one across the middle shows both."""
    path = films.film(tmp_path / "film.mp4")
    boxes = [Box(0, 10, 20, 20), Box(40, 10, 20, 20), Box(20, 10, 24, 24)]
    with Video(path) as video:
        one, two, both = video.frames([0.0], lambda width, height: boxes, 10)[:, 0, :, :, 0].astype(int)
    assert abs(two - one - 40).max() <= 2
    assert abs(both[:, 0] - one[:, 0]).max() <= 2
    assert abs(both[:, -1] - two[:, 0]).max() <= 2


@pytest.mark.parametrize(("rotation", "bright"), [(90, "top"), (180, "left"), (270, "bottom")])
def test_a_turned_camera(tmp_path, rotation, bright):
    """The matrix says: turn counter-clockwise by so much; unturned, the right half is the bright one."""
    path = films.film(tmp_path / "film.mp4", 2, rotation=rotation)
    sizes = []

    def whole(width, height):
        sizes.append((width, height))
        return [Box(0, 0, width, height)]

    with Video(path) as video:
        picture = video.frames([0.0], whole, 8)[0, 0, :, :, 0].astype(int)
    assert sizes == [(48, 64) if rotation != 180 else (64, 48)]
    halves = {"top": picture[:3], "bottom": picture[-3:], "left": picture[:, :3], "right": picture[:, -3:]}
    assert max(halves, key=lambda half: halves[half].mean()) == bright


@pytest.mark.parametrize("x", [(1, 0), (-1, 0), (0, 1), (0, -1)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_display_matrix_sends_each_corner_where_it_says(tmp_path, x, mirrored):
    """All four turns, and their mirror images, as front cameras write them."""
    y = (x[1], -x[0]) if mirrored else (-x[1], x[0])  # where the vertical axis goes
    pixels = np.zeros((48, 64, 3), np.uint8)
    grays = {(0, 0): 60, (1, 0): 120, (0, 1): 180, (1, 1): 240}  # by column and row of the corner
    for (column, row), gray in grays.items():
        pixels[24 * row : 24 * row + 24, 32 * column : 32 * column + 32] = gray
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        one = 1 << 16
        stream.set_display_matrix([x[0] * one, x[1] * one, 0, y[0] * one, y[1] * one, 0, 0, 0, 1 << 30])
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    with Video(path) as video:
        shown = video.frames([0.0], lambda width, height: [Box(0, 0, width, height)], 8)[0, 0, :, :, 0]
    for (column, row), gray in grays.items():
        across, down = ((2 * column - 1) * x[axis] + (2 * row - 1) * y[axis] for axis in (0, 1))
        assert abs(int(shown[2 + 2 * down, 2 + 2 * across]) - gray) < 12


@pytest.mark.parametrize(
    ("flaw", "reason"),
    [
        ("truncated", "Invalid data"),
        ("empty", "Invalid data"),
        ("text", "Invalid data"),
        ("sound", "no video stream that can be decoded, but audio"),
    ],
)
def test_files_that_are_no_videos(tmp_path, flaw, reason):
    path = films.broken(tmp_path)[flaw]
    with pytest.raises(UnreadableVideo, match=rf"{flaw}.mp4' cannot be read: .*{reason}.*; replace or remove the file"):
        numbers(path, [0.0])


def test_a_file_cut_short_behind_its_header(tmp_path):
    """A clip before the cut is there; one behind it is not, and the last frame is not held for seconds."""
    path = films.film(tmp_path / "film.mp4", 60, header_first=True)
    content = path.read_bytes()
    path.write_bytes(content[: int(0.75 * len(content))])
    assert numbers(path, [0.0, 0.5]) == [0, 5]
    with pytest.raises(UnreadableVideo, match=r"truncated: its data end at \d\.\d of the 6\.0 s|Invalid data"):
        numbers(path, [5.0, 5.9])


@pytest.mark.parametrize(
    ("suffix", "codec", "tone"), [("mkv", "libx264", 0.0), ("mkv", "libx264", 6.0), ("webm", "libvpx-vp9", 0.0)]
)
def test_half_of_a_matroska_file(tmp_path, suffix, codec, tone):
    """Its video stream stores no duration; the file does."""
    path = films.halve(films.film(tmp_path / f"film.{suffix}", 60, codec, tone=tone))
    assert numbers(path, [0.0, 0.5]) == [0, 5]
    for times in ([3.0, 3.5], [5.0, 5.9], [0.0, 5.9]):
        with pytest.raises(UnreadableVideo, match=r"truncated: its data end at \d\.\d of the 6\.\d s"):
            numbers(path, times)


def test_sound_that_outlasts_the_picture_is_no_truncation(tmp_path):
    """The last frame is held while the sound goes on, as players do; no clip is drawn from there."""
    path = films.film(tmp_path / "film.mkv", 30, tone=6.0)
    with Video(path) as video:
        assert video.seconds == pytest.approx(3.0, abs=0.02)
    assert numbers(path, [2.0, 5.5]) == [20, 29]
    assert numbers(path, [5.0, 5.5]) == [29, 29]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_frame_that_stands_for_seconds_is_no_truncation(tmp_path, suffix):
    path = films.film(tmp_path / f"film.{suffix}", 4, stamps=[0, 2000, 4000, 6000])
    with Video(path) as video:
        length = video.seconds
    assert numbers(path, [1.0, 5.0, length - 0.01]) == [0, 2, 3]


def test_one_frame(tmp_path):
    assert numbers(films.film(tmp_path / "film.mp4", 1), [0.0, 1.0, 2.0]) == [0, 0, 0]


def test_a_title_that_is_no_utf_8_is_no_damage(tmp_path):
    """Old files are tagged in Latin-1."""
    path = films.film(tmp_path / "old.mp4", title="Ferien at sea")
    content = path.read_bytes()
    assert b"Ferien at" in content
    path.write_bytes(content.replace(b"Ferien at", b"Ferien \xfct"))
    with Video(path) as video:
        assert video.seconds == pytest.approx(3.0)


def test_damage_met_while_measuring_is_reported_as_such(tmp_path, monkeypatch):
    """A header without a length whose data cannot be read, as some broken AVI files have it."""
    from av.error import PermissionError as Forbidden

    def refused(self, first, last):
        raise Forbidden(1, "Operation not permitted")

    monkeypatch.setattr("slicefine_pl.data.video.extent.ESTIMATED", ("mov,mp4,m4a,3gp,3g2,mj2",))
    monkeypatch.setattr("slicefine_pl.data.video.track.Track.runs", refused)
    with Video(films.film(tmp_path / "a.mp4")) as video, pytest.raises(UnreadableVideo, match="cannot be read"):
        _ = video.seconds


def test_no_such_file(tmp_path):
    with pytest.raises(UnreadableVideo, match=r"gone.mp4' cannot be read: No such file"):
        Video(tmp_path / "gone.mp4")


def test_an_unreadable_video_is_reported_across_processes():
    """A worker hands its error on by pickle."""
    error = UnreadableVideo(Path("a.mp4"), "it has no picture")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nreal.mp4\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize("content", ["ffconcat version 1.0\nfile 'real.mp4'\n", PLAYLIST], ids=["concat", "m3u"])
def test_a_list_of_other_files_is_not_opened(tmp_path, content):
    """FFmpeg knows lists by their content, whatever the file is called, and would open what they name."""
    films.film(tmp_path / "real.mp4", 12)
    (tmp_path / "list.mp4").write_text(content)
    with pytest.raises(UnreadableVideo, match=r"list.mp4' cannot be read: (its content is in none of|Invalid data)"):
        Video(tmp_path / "list.mp4")


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv", "mpg"])
def test_frames_beyond_the_limit_are_refused_by_name(tmp_path, monkeypatch, suffix):
    path = films.film(tmp_path / f"a.{suffix}", 30, codec="mpeg2video" if suffix == "mpg" else "mpeg4")
    with Video(path):
        pass
    monkeypatch.setattr(track, "MAX_PIXELS", 64 * 48 - 1)
    monkeypatch.setitem(track.OPTIONS, "max_pixels", str(64 * 48 - 1))
    with pytest.raises(UnreadableVideo, match=r"a\..* cannot be read: its frames have more than 3,071 pixels, or"):
        Video(path)
