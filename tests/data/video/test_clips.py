"""Clips and crops depend only on seed, epoch and index; unreadable videos are replaced in the same way everywhere."""

import random

import numpy as np
import pytest
import torch
from helpers import films
from pytorchvideo.data.clip_sampling import ConstantClipsPerVideoSampler, RandomClipSampler
from torch.utils.data import DataLoader

from slicefine_pl.data.batching import EpochPlan, ResumableLoader
from slicefine_pl.data.video.clips import ClipDataset, FixedViews, RandomView
from slicefine_pl.data.video.decoding import Video

VIEW = RandomView(num_frames=4, clip_seconds=0.8, crop_size=16, flip=True)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    return [str(films.film(folder / f"{number}.mp4")) for number in range(5)]


def first_frames(clips):
    """Number of the first frame of each clip, shape (V,), read off the darker half."""
    return [round((gray - 9.5) / 4) for gray in clips[:, 0, 0, 8, 1].tolist()]


def test_a_clip_spans_its_seconds(paths):
    """Four frames over 0.8 s are 0.2 s apart: every second frame at 10 per second."""
    clip = FixedViews(4, 0.8, 16)(paths[0], np.random.default_rng(0))
    assert (clip.shape, clip.dtype) == ((1, 3, 4, 16, 16), torch.uint8)
    steps = (clip[0, 0, :, 8, 1].float().diff() / 4).round()
    assert steps.tolist() == [2, 2, 2]
    assert first_frames(clip) == [11]  # the middle: (3.0 - 0.8) / 2 = 1.1 s


def test_views_are_spread_over_time_and_picture(paths):
    views = FixedViews(4, 0.8, 16, clips=2, crops=3)(paths[0], np.random.default_rng(0))
    assert views.shape == (6, 3, 4, 16, 16)
    assert first_frames(views[[0, 3]]) == [0, 11]  # pytorchvideo's own: multiples of (3.0 - 0.8) / 2
    left, middle, right = (views[crop, 0, 0].float() for crop in range(3))
    assert left[:, :8].std() < 1  # 48 of 64 columns: the left square has the dark 32 columns first
    assert middle[:, 0].mean() == pytest.approx(left[:, 0].mean(), abs=1)
    assert right[:, -8:].mean() == pytest.approx(left[:, 0].mean() + 40, abs=2)


def test_clips_begin_where_pytorchvideos_sampler_lets_them_begin(paths, monkeypatch):
    starts = []
    monkeypatch.setattr(
        Video, "frames", lambda self, times, *_: starts.append(times[0]) or np.zeros((1, 4, 16, 16, 3), "u1")
    )
    for seconds, clips in [(0.8, 2), (0.7, 4), (1.3, 7), (2.9, 3)]:
        starts.clear()
        FixedViews(4, seconds, 16, clips=clips)(paths[0], np.random.default_rng(0))
        sampler = ConstantClipsPerVideoSampler(seconds, clips)
        assert starts == pytest.approx([float(sampler(0.0, 3.0, {}).clip_start_sec) for _ in range(clips)])


def test_random_clips_begin_where_pytorchvideos_sampler_would_begin(paths, monkeypatch):
    """The same draw as in ``RandomClipSampler``, but from a generator of its own."""
    starts = []
    monkeypatch.setattr(
        Video, "frames", lambda self, times, *_: starts.append(times[0]) or np.zeros((1, 4, 16, 16, 3), "u1")
    )
    for seed in range(5):
        VIEW(paths[0], np.random.default_rng(seed))
        random.seed(int(np.random.default_rng(seed).integers(1 << 31)))
        assert starts.pop() == float(RandomClipSampler(0.8)(0.0, 3.0, {}).clip_start_sec)


def test_an_example_depends_on_seed_epoch_and_index_only(paths):
    data = ClipDataset(paths, range(5), VIEW, seed=1)
    state = random.getstate()
    once = data[7]["video"]  # epoch 1, index 2
    assert random.getstate() == state
    random.seed(5)
    torch.rand(3), np.random.rand(3)
    assert torch.equal(ClipDataset(paths, range(5), VIEW, seed=1)[7]["video"], once)
    assert data[7]["labels"] == 2
    others = [data[2], data[12], ClipDataset(paths, range(5), VIEW, seed=2)[7]]
    assert not any(torch.equal(other["video"], once) for other in others)


def test_random_clips_cover_the_video_and_are_mirrored_half_of_the_time(paths):
    clips = torch.cat([ClipDataset(paths, range(5), VIEW)[key]["video"] for key in range(60)])
    dark = torch.minimum(clips[:, 0, 0, 8, 0], clips[:, 0, 0, 8, -1]).float()
    starts = ((dark - 9.5) / 4).round()
    assert starts.min() <= 2
    assert starts.max() >= 19  # 2.2 s is the last start
    mirrored = (clips[:, 0, 0, 8, 0] > clips[:, 0, 0, 8, -1]).float().mean()
    assert 0.2 < mirrored < 0.7


@pytest.mark.parametrize("workers", [0, 2])
def test_persistent_workers_know_the_epoch(paths, workers):
    """Three epochs of loading in other processes equal the examples asked for one by one."""
    data = ClipDataset(paths, range(5), VIEW)
    loader = ResumableLoader(data, EpochPlan([1] * 5, 2, shuffle=True), lambda rows: rows, num_workers=workers)
    for epoch in range(3):
        loader.plan.set_epoch(epoch)
        found = [row for batch in loader for row in batch]
        keys = [key for batch in loader.plan.batches() for key in batch]
        assert [key // 5 for key in keys] == [epoch] * 5
        assert all(torch.equal(row["video"], data[key]["video"]) for row, key in zip(found, keys, strict=True))


@pytest.mark.filterwarnings("default")  # a worker turns warnings that are errors into failures
def test_a_broken_video_is_named_once_and_replaced_alike(paths, tmp_path):
    bad = str(films.broken(tmp_path)["truncated"])
    mixed = [*paths, bad]
    data = ClipDataset(mixed, range(6), VIEW)
    with pytest.warns(UserWarning, match=r"truncated.mp4' cannot be read: .* Another video takes its place"):
        replaced = data[5]
    assert data.unreadable == [bad]
    assert replaced["labels"] < 5
    assert [bool(data[index]["counted"]) for index in range(6)] == [True] * 5 + [False]  # in scores, once each
    assert torch.equal(data[5]["video"], replaced["video"])  # no second warning, the same video
    fresh = ClipDataset(mixed, range(6), VIEW)
    loader = DataLoader(fresh, batch_size=None, sampler=[5], num_workers=1)
    [again] = list(loader)
    assert torch.equal(again["video"], replaced["video"])
    assert fresh.unreadable == [bad]  # though a worker found it


@pytest.mark.filterwarnings("ignore")
def test_a_video_broken_in_part_gives_a_resumed_run_the_clips_of_an_uninterrupted_one(paths, tmp_path):
    """Its beginning can be read: some epochs show it, others another video, whatever was met before."""
    cut = films.film(tmp_path / "cut.mp4", 50, header_first=True)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 9 // 10])
    mixed = [*paths, str(cut)]
    whole = ClipDataset(mixed, range(6), VIEW)
    uninterrupted = [whole[6 * epoch + 5] for epoch in range(12)]
    shown = [int(example["labels"]) for example in uninterrupted]
    assert 5 in shown[shown.index(next(label for label in shown if label != 5)) :]  # after it has failed once
    for epoch, example in enumerate(uninterrupted):
        again = ClipDataset(mixed, range(6), VIEW)[6 * epoch + 5]
        assert torch.equal(again["video"], example["video"]), epoch


def test_nothing_but_broken_videos(tmp_path):
    bad = [str(path) for path in films.broken(tmp_path).values()]
    with (
        pytest.warns(UserWarning, match="cannot be read"),
        pytest.raises(ValueError, match="20 videos in a row cannot"),
    ):
        _ = ClipDataset(bad, range(4), VIEW)[0]


def test_predicting_replaces_nothing(tmp_path):
    bad = str(films.broken(tmp_path)["text"])
    with pytest.raises(ValueError, match=r"text.mp4' cannot be read"):
        _ = ClipDataset([bad], None, FixedViews(4, 0.8, 16), replace=False)[0]


def test_a_clip_longer_than_its_video_holds_the_last_frame_and_says_so_once(paths):
    data = ClipDataset(paths, range(5), FixedViews(4, 8.0, 16))
    with pytest.warns(
        UserWarning, match=r"lasts 3.00 s, less than clip_seconds=8.0: its last frame is repeated"
    ) as caught:
        first, _ = [data[index]["video"][0, 0, :, 8, 1].tolist() for index in (0, 1)]
    assert len(caught) == 1
    assert [round((gray - 9.5) / 4) for gray in first] == [0, 20, 29, 29]
