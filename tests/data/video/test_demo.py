"""The synthetic videos: only the motion shows the class."""

import av
import numpy as np
import pytest

from slicefine_pl.data.video import demo
from slicefine_pl.data.video.demo import FRAME_RATE, FRAMES, MOTIONS, draw_appearance, make_demo, render_frame


def test_a_single_frame_says_nothing_of_the_class():
    """Moving on for a time from one start is standing still at another, and starts are uniform: so each frame of
    each class has the distribution of the first frame, which is the same picture in all classes."""
    look = draw_appearance(np.random.default_rng(0))
    first = render_frame(look, "left", 0.0)
    for motion, rates in MOTIONS.items():
        np.testing.assert_array_equal(render_frame(look, motion, 0.0), first)
        moved = (look.start + look.speed * 1.5 * np.array(rates)) % 1.0
        other = type(look)(moved, look.speed, look.background, look.colors, look.stripes, look.slim)
        np.testing.assert_array_equal(render_frame(other, motion, 0.0), render_frame(look, motion, 1.5))
        assert (render_frame(look, motion, 1.0) != first).any()


@pytest.mark.parametrize(("one", "other"), [("left", "right"), ("up", "down"), ("grow", "shrink")])
def test_opposite_motions_are_each_other_backwards(one, other):
    assert MOTIONS[one] == tuple(-rate for rate in MOTIONS[other])


def test_the_set_is_made_once_of_real_files(tmp_path, monkeypatch):
    monkeypatch.setenv("SLICEFINE_CACHE", str(tmp_path))
    root = make_demo(10)
    files = sorted(root.rglob("*.mp4"))
    assert [len(list((root / split).rglob("*.mp4"))) for split in ("train", "val", "test")] == [48, 8, 24]
    assert {path.parent.name for path in files} == set(MOTIONS)
    with av.open(str(files[0])) as container:
        frames = list(container.decode(video=0))
        assert (len(frames), container.streams.video[0].average_rate) == (FRAMES, FRAME_RATE)
        assert not container.streams.audio
    before = files[0].stat().st_mtime_ns
    assert make_demo(10) == root
    assert files[0].stat().st_mtime_ns == before
    names = [root.name, f"{root.name}.sha256"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names  # nothing half-made is left


def test_a_damaged_set_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SLICEFINE_CACHE", str(tmp_path))
    monkeypatch.setattr(demo, "encode", lambda path, frames: path.write_bytes(b"video of " + path.name.encode()))
    monkeypatch.setattr(demo, "render_frame", lambda *_: None)
    root = make_demo(10)
    checksum = tmp_path / f"{root.name}.sha256"
    videos = sorted(root.rglob("*.mp4"))
    contents = [path.read_bytes() for path in videos]
    for damage in (
        lambda: videos[3].write_bytes(b"vidEo"),
        lambda: videos[5].unlink(),
        lambda: videos[0].rename(videos[0].with_name("x.mp4")),
        checksum.unlink,
    ):
        damage()
        make_demo(10)
        assert sorted(root.rglob("*.mp4")) == videos
        assert [path.read_bytes() for path in videos] == contents
    checksum.write_bytes(b"?")
    with pytest.warns(UserWarning, match="sha256' is damaged; it is made again"):
        make_demo(10)
