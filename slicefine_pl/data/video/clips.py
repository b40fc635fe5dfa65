"""Which part of a video is an example: times, crop and mirroring, as a function of (seed, epoch, index).

No global random state is used, so an example is the same in any process, with any number of workers, and after a
resume. pytorchvideo's ``RandomClipSampler`` draws the start of a clip from Python's global generator; here the same
draw comes from a generator of its own.

Shapes:  V views (clips x crops) · T frames · S height and width of the crop, in pixels
"""

import random
import warnings
from collections.abc import Sequence
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

AREA = (0.5, 1.0)  # area of a random training crop, as a fraction of the largest square
MAX_UNREADABLE = 20  # unreadable videos in a row after which loading stops


@dataclass(frozen=True)
class RandomView:
    """One clip at a random time, with one square crop at a random position.

    Args:
        num_frames: Number of frames in a clip (T), evenly spaced.
        clip_seconds: Duration of a clip, in seconds.
        crop_size: Height and width of the output, in pixels (S).
        flip: Whether half of the clips are mirrored.
    """

    num_frames: int
    clip_seconds: float
    crop_size: int
    flip: bool

    def __call__(self, path: str, rng: np.random.Generator) -> Tensor:
        """Return uint8, shape ``(1, 3, T, S, S)``."""
        with Video(path) as video:
            latest = max(video.seconds - self.clip_seconds, 0.0)
            start = random.Random(int(rng.integers(1 << 31))).uniform(0.0, latest)
            scale, across, down = np.sqrt(rng.uniform(*AREA)), rng.uniform(), rng.uniform()
            choose = partial(_random_box, scale=float(scale), across=across, down=down)
            clip = cut_clip(video, start, self.num_frames, self.clip_seconds, choose, self.crop_size)
        return clip.flip(-1) if self.flip and rng.uniform() < 0.5 else clip


@dataclass(frozen=True)
class FixedViews:
    """Clips spread evenly over the video, each with square crops spread evenly over the frame.

    Args:
        num_frames: Number of frames in a clip (T), evenly spaced.
        clip_seconds: Duration of a clip, in seconds.
        crop_size: Height and width of the output, in pixels (S).
        clips: Number of clips. A single one is taken from the middle.
        crops: Number of crops along the longer side. A single one is taken from the middle.
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
    """Videos by index. A video that cannot be read is replaced by another one.

    The replacement depends only on (seed, epoch, index, attempt), and whether a clip can be read depends only on the
    file. So all processes, and a resumed run, replace the same videos. A file that is damaged at one place still
    provides the clips before the damage.

    Args:
        paths: Paths of the videos.
        labels: Class index of each video; ``None`` for prediction.
        view: Which clips and crops of a video are returned.
        seed: Seed of all random choices.
        replace: Whether an unreadable video is replaced. Otherwise it raises an error.
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
        self._paths = list(paths)
        self._labels = [-1] * len(paths) if labels is None else list(labels)
        self._view = view
        self._seed = seed
        self._replace = replace
        self._unreadable = _shared_flags(len(paths))  # set by workers, read by the main process
        self._warned = _shared_flags(1)

    def __len__(self) -> int:
        """Number of videos."""
        return len(self._paths)

    def set_view(self, view: RandomView | FixedViews) -> None:
        """Return other clips and crops from now on."""
        self._view = view

    @property
    def unreadable(self) -> list[str]:
        """Paths of the videos that could not be read so far, in this process or its workers."""
        return [self._paths[int(index)] for index in self._unreadable.nonzero()]

    def __getitem__(self, key: int) -> dict[str, Tensor]:
        """Return ``video``, uint8 of shape ``(V, 3, T, S, S)``, ``labels``, and ``counted``.

        ``counted`` is ``False`` for a replacement, which metrics would count twice.

        Args:
            key: Index of an ``EpochPlan``: epoch x number of videos + index.

        Raises:
            UnreadableVideo: The video cannot be read, and videos are not replaced.
            ValueError: Too many videos in a row cannot be read.
        """
        epoch, index = divmod(key, len(self))
        for attempt in range(MAX_UNREADABLE):
            rng = np.random.default_rng((self._seed, epoch, index, attempt))
            place = int(rng.integers(len(self))) if attempt else index
            try:
                views = self._read(self._paths[place], rng)
            except UnreadableVideo as error:
                if not self._replace:
                    raise
                if not self._unreadable[place]:
                    warnings.warn(f"{error} Another video takes its place.", stacklevel=2)
                self._unreadable[place] = True
                continue
            return {
                "video": views,
                "labels": torch.tensor(self._labels[place]),
                "counted": torch.tensor(place == index),
            }
        raise ValueError(
            f"{MAX_UNREADABLE} videos in a row cannot be read, such as {self.unreadable[0]!r}; check that the files of "
            f"{str(Path(self.unreadable[0]).parent)!r} are complete."
        )

    def _read(self, path: str, rng: np.random.Generator) -> Tensor:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            views = self._view(path, rng)
        for warning in caught:  # once for the dataset, not once for each video
            if not self._warned:
                self._warned[0] = True
                warnings.warn(str(warning.message), stacklevel=3)
        return views


def _shared_flags(size: int) -> Tensor:
    """Return flags in memory that worker processes share."""
    flags = torch.zeros(size, dtype=torch.bool)
    flags.share_memory_()  # type: ignore[no-untyped-call]
    return flags


def _random_box(width: int, height: int, *, scale: float, across: float, down: float) -> list[Box]:
    edge = max(1, round(scale * min(width, height)))
    return [Box(round(across * (width - edge)), round(down * (height - edge)), edge, edge)]
