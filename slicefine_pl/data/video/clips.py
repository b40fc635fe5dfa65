"""Which part of which video is an example: times, crop and mirror image, as a function of (seed, epoch, index).

Answers: what exactly does index i of epoch e show?  No global random state enters, so it is the same in any process,
on any number of workers, and after a resume.

Shapes:  V views · T frames · S edge of the crop, in pixels
"""

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from slicefine_pl.data.video.decoding import Box, Video
from slicefine_pl.data.video.read_clips import cut_clip, read_clips
from slicefine_pl.data.video.track import UnreadableVideo

AREA = (0.5, 1.0)  # share of the largest square that a training crop takes
TRIES = 20  # videos tried before a set is taken for broken as a whole


@dataclass(frozen=True)
class RandomView:
    """One clip from anywhere in the video, one square from anywhere in the picture.

    Args:
        num_frames: Frames of a clip (T), evenly spaced.
        clip_seconds: Time that a clip spans.
        crop_size: Edge of the output, in pixels (S).
        flip: Whether half of the clips are mirrored.
    """

    num_frames: int
    clip_seconds: float
    crop_size: int
    flip: bool

    def __call__(self, path: str, rng: np.random.Generator) -> Tensor:
        """Return uint8, shape ``(1, 3, T, S, S)``."""
        from pytorchvideo.data.clip_sampling import RandomClipSampler

        with Video(path) as video:
            with _seeded(int(rng.integers(1 << 31))):  # pytorchvideo draws from Python's global generator
                start = float(RandomClipSampler(self.clip_seconds)(0.0, video.seconds, {}).clip_start_sec)
            share, across, down = np.sqrt(rng.uniform(*AREA)), rng.uniform(), rng.uniform()
            choose = partial(_random_box, share=float(share), across=across, down=down)
            clip = cut_clip(video, start, self.num_frames, self.clip_seconds, choose, self.crop_size)
        return clip.flip(-1) if self.flip and rng.uniform() < 0.5 else clip


@dataclass(frozen=True)
class FixedViews:
    """Clips spread evenly over the video, each with squares spread evenly over the picture.

    Args:
        num_frames: Frames of a clip (T), evenly spaced.
        clip_seconds: Time that a clip spans.
        crop_size: Edge of the output, in pixels (S).
        clips: Clips of a video; a single one is taken from the middle.
        crops: Squares of a picture along its longer side; a single one is taken from the middle.
    """

    num_frames: int
    clip_seconds: float
    crop_size: int
    clips: int = 1
    crops: int = 1

    def __call__(self, path: str, rng: np.random.Generator) -> Tensor:
        """Return uint8, shape ``(V, 3, T, S, S)`` with V = clips x crops."""
        return read_clips(
            path,
            num_frames=self.num_frames,
            clip_seconds=self.clip_seconds,
            crop_size=self.crop_size,
            test_clips=self.clips,
            test_crops=self.crops,
        )


class ClipDataset(Dataset[dict[str, Tensor]]):
    """Videos by index; one that cannot be read is replaced by another, so that every process gets equally many.

    The replacement is drawn from (seed, epoch, index, attempt), and whether a clip can be read depends on the file
    alone: all processes, and a run that resumes, replace alike.  So a file that is broken in part still serves the
    clips before the damage.

    Args:
        paths: Of the videos.
        labels: Class of each, or ``None`` when predicting.
        view: What is shown of a video.
        seed: Of all random choices.
        replace: Whether an unreadable video is replaced; otherwise it raises.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int] | None,
        view: RandomView | FixedViews,
        *,
        seed: int = 0,
        replace: bool = True,
    ) -> None:
        from pytorchvideo.data.labeled_video_paths import LabeledVideoPaths

        self._videos = LabeledVideoPaths(list(zip(paths, labels or [-1] * len(paths), strict=True)))
        self._view = view
        self._seed = seed
        self._replace = replace
        self._broken = _shared(len(paths))  # workers mark, their parent reads
        self._told = _shared(1)

    def __len__(self) -> int:
        """Number of videos."""
        return len(self._videos)

    def show(self, view: RandomView | FixedViews) -> None:
        """Show something else of the videos from now on."""
        self._view = view

    @property
    def broken(self) -> list[str]:
        """Paths that could not be read so far, in this process or its workers."""
        return [self._videos[int(index)][0] for index in self._broken.nonzero()]

    def __getitem__(self, key: int) -> dict[str, Tensor]:
        """Return ``video``, uint8 of shape ``(V, 3, T, S, S)``, ``labels``, and whether it is ``counted`` in scores.

        A replacement is not: scores would count it twice.  ``key`` is that of ``EpochPlan``.
        """
        epoch, index = divmod(key, len(self))
        for attempt in range(TRIES):
            rng = np.random.default_rng((self._seed, epoch, index, attempt))
            place = int(rng.integers(len(self))) if attempt else index
            path, about = self._videos[place]
            try:
                views = self._views(path, rng)
            except UnreadableVideo as error:
                if not self._replace:
                    raise
                if not self._broken[place]:
                    warnings.warn(f"{error} Another video takes its place.", stacklevel=2)
                self._broken[place] = True
                continue
            counted = torch.tensor(place == index)
            return {"video": views, "labels": torch.tensor(about["label"]), "counted": counted}
        raise ValueError(
            f"{TRIES} videos in a row cannot be read, such as {self.broken[0]!r}; check that the files of "
            f"{str(Path(self.broken[0]).parent)!r} are whole."
        )

    def _views(self, path: str, rng: np.random.Generator) -> Tensor:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            views = self._view(path, rng)
        for warning in caught:  # once for the set, not once for each of its videos
            if not self._told:
                self._told[0] = True
                warnings.warn(str(warning.message), stacklevel=3)
        return views


def _shared(size: int) -> Tensor:
    """Flags that all processes of this one see."""
    flags = torch.zeros(size, dtype=torch.bool)
    flags.share_memory_()  # type: ignore[no-untyped-call]
    return flags


def _random_box(width: int, height: int, *, share: float, across: float, down: float) -> list[Box]:
    edge = max(1, round(share * min(width, height)))
    return [Box(round(across * (width - edge)), round(down * (height - edge)), edge, edge)]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's global generator starts from ``seed`` inside, and is as before afterwards."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
