"""Data module of labeled videos: folders and lists of videos, or synthetic demo videos."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from slicefine_pl.arguments import check_choice, check_count
from slicefine_pl.data.batching import EpochPlan, PlannedLoader, ResumableDataModule, ResumableLoader
from slicefine_pl.data.folders.class_folders import no_test_split
from slicefine_pl.data.folders.hash_split import check_split
from slicefine_pl.data.tables.labels import (
    ClassificationData,
    check_classes_trained,
    class_indices,
    class_names,
    labels_are_indices,
    validate_names,
)
from slicefine_pl.data.tables.table import Table
from slicefine_pl.data.training_input import TrainingInput
from slicefine_pl.data.video import demo
from slicefine_pl.data.video.clips import ClipDataset, FixedViews, RandomView
from slicefine_pl.data.video.lists import SUFFIXES, list_videos, videos_below
from slicefine_pl.data.video.preprocessing import video_input
from slicefine_pl.files.atomic import warn_on_error, write_atomic
from slicefine_pl.inputs import VideoInput
from slicefine_pl.optional import require

Fold = Literal[1, 2, 3]
Missing = Literal["error", "skip"]
UNITS = {"num_frames": "frames", "crop_size": "pixels", "test_clips": "clips", "test_crops": "crops"}


class VideoDataModule(ClassificationData, ResumableDataModule):
    """Serve videos as batches of ``video``, uint8 of shape ``(B, V, 3, T, S, S)``, and ``labels``, shape ``(B,)``.

    **Views.** Training shows one clip (V = 1) at a random time, with a random square crop, mirrored half of the time.
    Validation shows the middle clip. Test and prediction show ``test_clips`` x ``test_crops`` views of each video in
    one example, so that a model can average them.
    **Frames, duration and crop.** In training: the given ones, else those of an exported folder or of the backbone. In
    evaluation and prediction: those of training; other ones are an error.
    **Random choices** depend only on (seed, epoch, index). Processes, workers and a resumed run agree.
    **Unreadable files** raise a warning and are replaced by another video, so that every process has the same number of
    batches. At the end all of them are listed, and written to ``broken_videos.txt`` in the log folder.
    **Files.** Every file below ``root`` is used, or counted in a warning with the reason.
    **Limits.** One label per video, for the whole video. No audio. Without a test split there is no test score.

    Args:
        root: Folder with ``{train,val,test}/<class>/*.mp4``, with ``<class>/*.mp4`` and ``split``, or in another layout
            of ``data/video/lists.py``. ``None`` makes the synthetic videos of ``data/video/demo.py``.
        label_names: Name of each class, in order of its index. ``None`` means those of the training split, sorted.
        num_frames: Number of frames in a clip (T).
        clip_seconds: Duration of a clip, in seconds.
        crop_size: Height and width of the square crops, in pixels (S).
        flip: Whether training mirrors half of the clips. Synthetic videos are never mirrored: left and right are
            classes.
        test_clips: Number of clips of each video in tests and predictions. ``None`` means that of training, else the
            default of the class.
        test_crops: Number of crops of each such clip. ``None`` means that of training, else the default of the class.
        fold: Official split of UCF101 or HMDB51: 1, 2 or 3.
        missing: Whether listed files that do not exist are an error, or are skipped.
        split: Fractions of train, val and test, such as ``"0.7/0.1/0.2"``. The videos of each class folder
            ``root/<class>/`` are split by a hash of their content.
        demo_videos: Number of synthetic videos per class.
        batch_size: Videos per batch and process. Test batches contain fewer, depending on the number of views.
        num_workers: Number of worker processes per training process; 0 decodes in the training process.
        seed: Seed of the order, the clips and the crops.
        predict_path: Video, or folder of videos, to predict.
        processor: Backbone, exported folder or checkpoint that sets frames, duration and crop if they are not given.
            ``None`` means 16 frames of 224 pixels over 2 seconds. The synthetic videos have their own.

    Attributes:
        test_views: Default number of test clips per video, and of crops per clip.
    """

    test_views: ClassVar[tuple[int, int]] = (1, 1)

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
        fold: Fold = 1,
        missing: Missing = "error",
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
        check_choice("fold", fold, Fold)
        check_choice("missing", missing, Missing)
        sizes = {"num_frames": num_frames, "crop_size": crop_size, "test_clips": test_clips, "test_crops": test_crops}
        for name, value in sizes.items():
            check_count(name, value, UNITS[name], optional=True)
        if clip_seconds is not None and not 0 < clip_seconds < math.inf:
            raise ValueError(f"clip_seconds={clip_seconds} is not a duration; choose more than 0.")
        if demo_videos < 10:
            raise ValueError(f"demo_videos={demo_videos} leaves a split without videos of a class; choose at least 10.")
        self.root = root
        self.processor = processor
        self.flip = flip and root is not None
        self.fold = fold
        self.missing = missing
        self.split = split
        self.demo_videos = demo_videos
        self.predict_path = predict_path
        self._given: dict[str, Any] = {**sizes, "clip_seconds": clip_seconds}
        self._given_names = validate_names(label_names)
        self._tables: dict[str, Table] = {}
        self._datasets: dict[str, ClipDataset] = {}
        self._view_input: VideoInput | None = None

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes, in order of their index; ``None`` if only predictions are served."""
        if self.predict_path is not None:
            return None
        if self._given_names is not None:
            return self._given_names
        return sorted(demo.MOTIONS) if self.root is None else class_names(self._load()["train"])

    @property
    def input(self) -> VideoInput:
        """Frames, duration and crop of the clips."""
        training = TrainingInput.of(self, VideoInput, self.processor, predicting=self.predict_path is not None)
        return training.resolve(self._given, self._backbone_input)

    def _backbone_input(self) -> VideoInput:
        is_demo = self.root is None and self.predict_path is None
        return demo.INPUT if is_demo else video_input(self.processor, self.test_views)

    @property
    def num_frames(self) -> int:
        """Number of frames in a clip (T)."""
        return self.input.num_frames

    @property
    def crop_size(self) -> int:
        """Height and width of a frame, in pixels (S)."""
        return self.input.crop_size

    @cached_property
    def predict_names(self) -> list[str]:
        """Paths of the videos to predict, in order; an error if ``predict_path`` gives none."""
        if self.predict_path is None:
            raise ValueError("nothing to predict; give --data.predict_path, a video or a folder of videos.")
        path = Path(self.predict_path).expanduser()
        found = [path] if path.is_file() else []
        if path.is_dir():
            found = videos_below(f"data.predict_path={self.predict_path!r}", path)
        if not found:
            raise FileNotFoundError(
                f"predict_path={self.predict_path!r} is neither a file nor a folder with videos ({' '.join(SUFFIXES)})."
            )
        return [str(path) for path in found]

    def prepare_data(self) -> None:
        """Make the synthetic videos if no root is given, once per machine, and warn about it."""
        if self.root is None and self.predict_path is None:
            rank_zero_warn(
                f"no data.root is given: training on {8 * self.demo_videos} SYNTHETIC videos, a moving patch in "
                f"{len(demo.MOTIONS)} motion classes ({demo.demo_root(self.demo_videos)}); give "
                "--data.root for real ones."
            )
            require("av")
            demo.make_demo(self.demo_videos)

    def setup(self, stage: str) -> None:
        """Find the videos of a stage."""
        require("av")  # otherwise the first batch would fail, in a worker process
        self._view_input = self.input
        if stage == "predict":
            self._datasets["predict"] = ClipDataset(self.predict_names, None, self._view("predict"), replace=False)
        elif not self._datasets:
            self._make_datasets()

    def _make_datasets(self) -> None:
        names = self.label_names
        assert names is not None
        tables = self._load()
        are_indices = self._given_names is not None and labels_are_indices(tables["train"], names)
        indices = {split: class_indices(table, names, are_indices=are_indices) for split, table in tables.items()}
        check_classes_trained(indices["train"], names, tables["train"].source)
        self._warn_missing_classes(indices, names)
        for split, table in tables.items():
            self._datasets[split] = ClipDataset(table.columns[0], indices[split], self._view(split), seed=self.seed)

    def train_dataloader(self) -> ResumableLoader:
        """Return one random clip of each video, in a new order each epoch."""
        dataset = self._current("train")
        plan = self.plan([1] * len(dataset), shuffle=True, kind=EpochPlan)
        return self.resumed(ResumableLoader(dataset, plan, _collate, self.num_workers))

    def val_dataloader(self) -> PlannedLoader:
        """Return the middle clip of each video."""
        return self._evaluation("val", self.batch_size)

    @property
    def has_test(self) -> bool:
        """Whether there is a test split."""
        return "test" in self._load()

    def test_dataloader(self) -> PlannedLoader:
        """Return all views of each video.

        Raises:
            ValueError: There is no test split.
        """
        if not self.has_test:
            raise ValueError(no_test_split(f"data.root={self.root!r}"))
        views = self.input.test_clips * self.input.test_crops
        return self._evaluation("test", max(1, self.batch_size // views))

    def predict_dataloader(self) -> PlannedLoader:
        """Return all views of each video, in the order of ``predict_names``."""
        return self._evaluation("predict", 1)

    def on_exception(self, exception: BaseException) -> None:
        """List the unreadable files of this process. Other processes may have ended."""
        self._warn_unreadable(self._unreadable())

    def teardown(self, stage: str) -> None:
        """List the unreadable files of all processes."""
        super().teardown(stage)
        if self.trainer is None:
            return
        paths = self._unreadable()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everyone: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(everyone, paths)
            paths = sorted({path for some in everyone for path in some})
        folder = self.trainer.log_dir  # a collective operation
        self._warn_unreadable(paths)
        if paths and folder is not None and self.trainer.is_global_zero:
            file = Path(folder) / "broken_videos.txt"
            with warn_on_error(file):
                write_atomic(file, "\n".join(paths) + "\n")

    def _unreadable(self) -> list[str]:
        return sorted({path for dataset in self._datasets.values() for path in dataset.unreadable})

    def _warn_unreadable(self, paths: list[str]) -> None:
        if paths:
            listed = "\n  ".join(paths)
            rank_zero_warn(f"{len(paths)} videos could not be read, and others took their place:\n  {listed}")

    def _warn_missing_classes(self, indices: Mapping[str, Sequence[int]], names: Sequence[str]) -> None:
        gaps = {split: sorted(set(range(len(names))) - set(found)) for split, found in indices.items()}
        messages = [
            f"{len(absent)} of the {len(names)} classes in {split}, such as {names[absent[0]]!r}"
            for split, absent in gaps.items()
            if absent
        ]
        if messages:
            rank_zero_warn(
                f"data.root={self.root!r} has no video of {', and of '.join(messages)}; scores do not include them."
            )

    def _view(self, name: str) -> RandomView | FixedViews:
        spec = self.input
        if name == "train":
            return RandomView(spec.num_frames, spec.clip_seconds, spec.crop_size, self.flip)
        clips, crops = (1, 1) if name == "val" else (spec.test_clips, spec.test_crops)
        return FixedViews(spec.num_frames, spec.clip_seconds, spec.crop_size, clips, crops)

    def _current(self, name: str) -> ClipDataset:
        """Return the videos of a split, with the views of training, which a checkpoint may set after ``setup``."""
        if self.input != self._view_input:
            self._view_input = self.input
            for split, dataset in self._datasets.items():
                dataset.set_view(self._view(split))
        return self._datasets[name]

    def _evaluation(self, name: str, batch_size: int) -> PlannedLoader:
        dataset = self._current(name)
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
