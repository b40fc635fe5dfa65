"""Videos as batches of clips: Kinetics, UCF101, HMDB51, folders and lists of one's own, or a small made-up set."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from slicefine_pl.data.batching import EpochPlan, PlannedLoader, ResumableDataModule, ResumableLoader
from slicefine_pl.data.folders import no_test_split
from slicefine_pl.data.labels import (
    NamedClasses,
    are_positions,
    check_trained,
    checked_names,
    class_indices,
    class_names,
)
from slicefine_pl.data.shares import check_split
from slicefine_pl.data.tables import Table
from slicefine_pl.data.trained import settled_input
from slicefine_pl.data.video import demo
from slicefine_pl.data.video.clips import ClipDataset, FixedViews, RandomView
from slicefine_pl.data.video.lists import SUFFIXES, list_videos, videos_below
from slicefine_pl.data.video.preprocessing import video_input
from slicefine_pl.files.atomic import warn_on_error, write_atomic
from slicefine_pl.inputs import VideoInput


class KineticsDataModule(NamedClasses, ResumableDataModule):
    """Serve videos as batches of ``video``, uint8 of shape ``(B, V, 3, T, S, S)``, and ``labels``, shape ``(B,)``.

    **Views.** Training shows one clip (V = 1) from anywhere in the video, a random square of it, mirrored half of the
    time; validation the middle; test ``test_clips`` x ``test_crops`` views of each video, in one example, so that a
    model can average them and count per video; so does prediction.
    **Frames, times and crop** are those of training where a trained module is evaluated or predicts: other ones raise.
    In training they are those given here, and for the rest those of the module's export, or of the backbone.
    **Random choices** depend on (seed, epoch, index) alone: processes, workers and a resumed run agree.
    **Broken files** are named in a warning and replaced by another video, so that every process has as many batches;
    at the end all of them are listed, and written to ``broken_videos.txt`` beside the logs.
    **Files.** Every file below ``root`` is used, or counted in a warning that says why not.
    **Limits.** Without a test split there is no test score. One label a video; no sound; whole-video labels, not times
    within one.

    Args:
        root: Folder as ``list_videos`` knows them, such as ``root/{train,val,test}/<class>/*.mp4``; ``None`` makes the
            small motion set of ``data/video/demo.py``.
        label_names: Name of each class, in order; ``None`` takes those of the training split, sorted.
        num_frames: Frames of a clip (T).
        clip_seconds: Time that a clip spans.
        crop_size: Edge of the squares that are cut out, in pixels (S).
        flip: Whether training mirrors half of the clips; never in the motion set, where left and right are classes.
        test_clips: Clips of each video in tests and predictions; ``None`` takes 4, or what the module was trained with.
        test_crops: Squares of each such clip; ``None`` takes 3, or what the module was trained with.
        fold: Which official split of UCF101 or HMDB51: 1, 2 or 3.
        missing: Whether listed files that do not exist raise, or are left out.
        split: Shares of train, val and test, such as ``"0.7/0.1/0.2"``, into which the videos of each class folder
            ``root/<class>/`` are split by a hash of their content.
        demo_videos: Videos of each class of the motion set.
        batch_size: Videos per batch and process; test batches hold fewer, by their number of views.
        num_workers: Processes that decode, per training process.
        seed: Of the order, the clips and the crops.
        predict_path: Video, or folder of videos, to predict.
        processor: Backbone, exported folder or checkpoint whose frames, times and crop count where these are not given;
            ``None`` takes 16 frames of 224 pixels over 2 seconds.  The motion set has its own.
    """

    def __init__(
        self,
        root: str | None = None,
        label_names: list[str] | None = None,
        num_frames: int | None = None,
        clip_seconds: float | None = None,
        crop_size: int | None = None,
        flip: bool = True,
        test_clips: int | None = None,
        test_crops: int | None = None,
        fold: Literal[1, 2, 3] = 1,
        missing: Literal["error", "skip"] = "error",
        split: str | None = None,
        demo_videos: int = 50,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        predict_path: str | None = None,
        processor: str | None = None,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        check_split(split, root)
        sizes = {"num_frames": num_frames, "crop_size": crop_size, "test_clips": test_clips, "test_crops": test_crops}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} is too small; choose at least 1.")
        if clip_seconds is not None and not 0 < clip_seconds < math.inf:
            raise ValueError(f"clip_seconds={clip_seconds} is no span of time; choose more than 0.")
        if demo_videos < 10:
            raise ValueError(f"demo_videos={demo_videos} gives some split no video of a class; choose at least 10.")
        self.root = root
        self.processor = processor
        self.flip = flip and root is not None
        self.fold = fold
        self.missing = missing
        self.split = split
        self.demo_videos = demo_videos
        self.predict_path = predict_path
        self._given: dict[str, Any] = {**sizes, "clip_seconds": clip_seconds}
        self._given_names = checked_names(label_names)
        self._tables: dict[str, Table] = {}
        self._datasets: dict[str, ClipDataset] = {}
        self._shown_input: VideoInput | None = None

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes in order of their index; ``None`` when only predicting."""
        if self.predict_path is not None:
            return None
        if self._given_names is not None:
            return self._given_names
        return sorted(demo.MOTIONS) if self.root is None else class_names(self._load()["train"])

    @property
    def input(self) -> VideoInput:
        """Frames, times and crop of the clips."""
        predicting = self.predict_path is not None
        return settled_input(self, VideoInput, self._given, self._backbone_input, predicting=predicting)

    def _backbone_input(self) -> VideoInput:
        moving = self.root is None and self.predict_path is None
        return demo.INPUT if moving else video_input(self.processor)

    @property
    def num_frames(self) -> int:
        """Frames of a clip (T)."""
        return self.input.num_frames

    @property
    def crop_size(self) -> int:
        """Edge of a frame, in pixels (S)."""
        return self.input.crop_size

    @cached_property
    def predict_names(self) -> list[str]:
        """Paths of the videos to predict, in order."""
        if self.predict_path is None:
            raise ValueError("nothing to predict; give --data.predict_path, a video or a folder of videos.")
        place = Path(self.predict_path).expanduser()
        found = [place] if place.is_file() else []
        if place.is_dir():
            found = videos_below(f"data.predict_path={self.predict_path!r}", place)
        if not found:
            raise FileNotFoundError(
                f"predict_path={self.predict_path!r} is neither a file nor a folder with videos ({' '.join(SUFFIXES)})."
            )
        return [str(path) for path in found]

    def prepare_data(self) -> None:
        """Make the motion set where none is given, once per machine, and say so."""
        if self.root is None and self.predict_path is None:
            rank_zero_warn(
                f"no data.root is given: training on {8 * self.demo_videos} SYNTHETIC videos, a moving patch in "
                f"{len(demo.MOTIONS)} motion classes ({demo.demo_root(self.demo_videos)}); give "
                "--data.root for real ones."
            )
            demo.make_demo(self.demo_videos)

    def setup(self, stage: str) -> None:
        """Find the videos that the stage needs."""
        self._shown_input = self.input
        if stage == "predict":
            self._datasets["predict"] = ClipDataset(self.predict_names, None, self._view("predict"), replace=False)
        elif not self._datasets:
            self._find()

    def _find(self) -> None:
        names = self.label_names
        assert names is not None
        tables = self._load()
        positions = self._given_names is not None and are_positions(tables["train"], names)
        indices = {split: class_indices(table, names, positions=positions) for split, table in tables.items()}
        check_trained(indices["train"], names, tables["train"].source)
        self._tell_gaps(indices, names)
        for split, table in tables.items():
            self._datasets[split] = ClipDataset(table.columns[0], indices[split], self._view(split), seed=self.seed)

    def train_dataloader(self) -> ResumableLoader:
        """One random clip of each video, in a new order each epoch."""
        dataset = self._shown("train")
        plan = self.plan([1] * len(dataset), shuffle=True, kind=EpochPlan)
        return self.resumed(ResumableLoader(dataset, plan, _collate, self.num_workers))

    def val_dataloader(self) -> PlannedLoader:
        """The middle of each video."""
        return self._evaluation("val", self.batch_size)

    @property
    def has_test(self) -> bool:
        """Whether there is a test split."""
        return "test" in self._load()

    def test_dataloader(self) -> PlannedLoader:
        """All views of each video.

        Raises:
            ValueError: There is no test split.
        """
        if not self.has_test:
            raise ValueError(no_test_split(f"data.root={self.root!r}"))
        views = self.input.test_clips * self.input.test_crops
        return self._evaluation("test", max(1, self.batch_size // views))

    def predict_dataloader(self) -> PlannedLoader:
        """All views of each video, in the order of ``predict_names``."""
        return self._evaluation("predict", 1)

    def on_exception(self, exception: BaseException) -> None:
        """Name the broken files of this process; the others may be gone."""
        self._tell(self._broken())

    def teardown(self, stage: str) -> None:
        """List the broken files that any process met."""
        super().teardown(stage)
        if self.trainer is None:
            return
        mine = self._broken()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everyone: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(everyone, mine)
            mine = sorted({path for paths in everyone for path in paths})
        folder = self.trainer.log_dir  # asking for it takes all processes
        self._tell(mine)
        if mine and folder is not None and self.trainer.is_global_zero:
            path = Path(folder) / "broken_videos.txt"
            with warn_on_error(path):
                write_atomic(path, "\n".join(mine) + "\n")

    def _broken(self) -> list[str]:
        return sorted({path for dataset in self._datasets.values() for path in dataset.broken})

    def _tell(self, broken: list[str]) -> None:
        if broken:
            listed = "\n  ".join(broken)
            rank_zero_warn(f"{len(broken)} videos could not be read, and others took their place:\n  {listed}")

    def _tell_gaps(self, indices: Mapping[str, Sequence[int]], names: Sequence[str]) -> None:
        gaps = {split: sorted(set(range(len(names))) - set(found)) for split, found in indices.items()}
        told = [
            f"{len(absent)} of the {len(names)} classes in {split}, such as {names[absent[0]]!r}"
            for split, absent in gaps.items()
            if absent
        ]
        if told:
            rank_zero_warn(
                f"data.root={self.root!r} has no video of {', and of '.join(told)}; scores say nothing of them."
            )

    def _view(self, name: str) -> RandomView | FixedViews:
        given = self.input
        if name == "train":
            return RandomView(given.num_frames, given.clip_seconds, given.crop_size, self.flip)
        clips, crops = (1, 1) if name == "val" else (given.test_clips, given.test_crops)
        return FixedViews(given.num_frames, given.clip_seconds, given.crop_size, clips, crops)

    def _shown(self, name: str) -> ClipDataset:
        """The videos of a split, as the module saw them: its checkpoint may say how, and is loaded after ``setup``."""
        if self.input != self._shown_input:
            self._shown_input = self.input
            for split, dataset in self._datasets.items():
                dataset.show(self._view(split))
        return self._datasets[name]

    def _evaluation(self, name: str, batch_size: int) -> PlannedLoader:
        dataset = self._shown(name)
        plan = self.plan([1] * len(dataset), shuffle=False, batch_size=batch_size)
        return PlannedLoader(dataset, plan, _collate, self.num_workers)

    def _load(self) -> dict[str, Table]:
        """List the videos once."""
        if not self._tables:
            root = demo.demo_root(self.demo_videos) if self.root is None else Path(self.root).expanduser()
            self._tables = list_videos(root, fold=self.fold, missing=self.missing, split=self.split)
        return self._tables


def _collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}
