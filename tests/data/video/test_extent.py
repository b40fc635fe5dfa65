"""Damaged files are refused if a clip would show wrong frames; undamaged files are not."""

import numpy as np
import pytest
from helpers import films

from slicefine_pl.data.video.decoding import Box, UnreadableVideo, Video

FRAMES, CLIP = 60, 5
B = {"bf": "2"}
KINDS = {
    "film.mp4": ("libx264", B, 0),
    "older.mp4": ("mpeg4", B, 0),
    "film.mkv": ("libx264", B, 0),
    "late.mkv": ("libx264", B, 5000),
    "film.webm": ("libvpx-vp9", {}, 0),
    "late.flv": ("libx264", B, 5000),
    "film.avi": ("mpeg4", {}, None),
    "b.avi": ("libx264", B, None),
    "jpeg.avi": ("mjpeg", {}, None),
}


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """The bytes of one whole file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    found = {}
    for name, (codec, options, start) in KINDS.items():
        stamps = None if start is None else [start + 100 * number for number in range(FRAMES)]
        film = films.film(
            folder / name, FRAMES, codec, stamps=stamps, options=options, header_first=name.endswith("mp4"),
            draw=films.bars, pixels="yuvj420p" if codec == "mjpeg" else "yuv420p",
        )  # fmt: skip
        found[name] = film.read_bytes()
    return found


def clips(path):
    """Times and numbers of clips from all over the length of the file; ``None`` for numbers where it is refused."""
    try:
        with Video(path) as video:
            last = max(video.seconds - CLIP / 10, 0.0)
    except UnreadableVideo:
        return [([], None)]
    found = []
    for start in np.linspace(0, last, 7):
        times = [start + step / 10 for step in range(CLIP)]
        try:
            with Video(path) as video:
                views = video.frames(times, lambda width, height: [Box(0, 0, width, height)], films.WIDTH)
        except UnreadableVideo:
            found.append((times, None))
        else:
            found.append((times, films.read(views[0])))
    return found


def right(times):
    """Frame n is on show from n tenths of a second on; the last is held."""
    return films.on_show([(number / 10, number) for number in range(FRAMES)], times)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("garbage", [0, 100, 5000])
def test_a_whole_file_is_not_refused(tmp_path, contents, name, garbage):
    """Nor is one with something behind its end, as downloads and tools for rescue leave it."""
    path = tmp_path / name
    path.write_bytes(contents[name] + np.random.default_rng(0).bytes(garbage))
    for times, numbers in clips(path):
        assert numbers == right(times)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_cut_anywhere_shows_what_is_right_or_is_refused(tmp_path, contents, name):
    path = tmp_path / name
    for share in np.linspace(0.04, 0.96, 12):
        path.write_bytes(contents[name][: int(share * len(contents[name]))])
        found = clips(path)
        assert all(numbers in (None, right(times)) for times, numbers in found), share
        lasts = share > 0.8  # up to half a second may be missing, as headers round
        assert lasts or any(numbers is None for _, numbers in found), share  # it is not taken for a shorter whole film


@pytest.mark.parametrize("name", ["film.mp4", "film.avi", "b.avi"])
@pytest.mark.parametrize("size", [40, 400])
def test_zeros_in_the_midst_of_the_pictures(tmp_path, contents, name, size):
    """A lost block: neither a picture that covers up the damage, nor pictures that moved up in time."""
    path, content = tmp_path / name, contents[name]
    marks = {"mp4": (b"mdat", None), "avi": (b"movi", b"idx1")}[name.split(".")[1]]
    begin, end = (len(content) if mark is None else content.rindex(mark) for mark in marks)
    refused = 0
    for place in np.linspace(begin + 600, end - size - 10, 8).astype(int):
        path.write_bytes(content[:place] + bytes(size) + content[place + size :])
        found = clips(path)
        assert all(numbers in (None, right(times)) for times, numbers in found), place
        refused += sum(numbers is None for _, numbers in found)
    assert refused


@pytest.mark.parametrize(("name", "seconds"), [("late.mkv", 6.0), ("late.flv", 6.0), ("film.webm", 6.0)])
def test_the_length_is_that_of_the_pictures(tmp_path, contents, name, seconds):
    path = tmp_path / name
    path.write_bytes(contents[name])
    with Video(path) as video:
        assert video.seconds == pytest.approx(seconds, abs=0.11)


@pytest.mark.parametrize("suffix", ["mkv", "flv", "ts", "mp4"])
def test_sound_that_begins_before_the_pictures(tmp_path, suffix):
    """The pictures last from 3 s to 6 s of 9 s of sound: 3 s in all, of which every clip can be read."""
    path = films.film(
        tmp_path / f"film.{suffix}", 30, stamps=[3000 + 100 * number for number in range(30)], tone=9.0, options=B,
        draw=films.bars,
    )  # fmt: skip
    with Video(path) as video:
        assert video.seconds == pytest.approx(3.0, abs=0.11)
    shown = films.linear(path)
    for times, numbers in clips(path):
        assert numbers == films.on_show(shown, times)
