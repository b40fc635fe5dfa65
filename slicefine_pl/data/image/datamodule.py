"""Data module of labeled images."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from slicefine_pl.arguments import check_count
from slicefine_pl.data.batching import EpochPlan, PlannedLoader, ResumableDataModule, ResumableLoader
from slicefine_pl.data.cache import cache_folder
from slicefine_pl.data.folders.class_folders import no_test_split
from slicefine_pl.data.folders.hash_split import check_split
from slicefine_pl.data.image.datasets import FileImages, Splits, images_below, read_folder
from slicefine_pl.data.image.decoding import suffixes
from slicefine_pl.data.image.demo import DIGITS, load_digits
from slicefine_pl.data.image.preprocessing import image_input
from slicefine_pl.data.image.torchvision_sets import load_published
from slicefine_pl.data.image.transforms import Augmentation, ImageDataset, collate
from slicefine_pl.data.tables.labels import ClassificationData
from slicefine_pl.data.training_input import TrainingInput
from slicefine_pl.inputs import ImageInput
from slicefine_pl.optional import require
from slicefine_pl.pretrained import parse_backbone

DEMO = "digits"
FOLDER_AUGMENTATION, SOURCE_AUGMENTATION = Augmentation(0.35, True), Augmentation(0.7, False)


class ImageDataModule(ClassificationData, ResumableDataModule):
    """Serve images as batches of normalized ``images``, shape ``(B, 3, S, S)``, and ``labels``, shape ``(B,)``.

    **Batches** are reshuffled each epoch. Crops and flips depend only on seed, epoch and image, so a resumed run sees
    the same images as an uninterrupted one. Every process gets the same number of batches.
    **Size, mean and std.** In training: the given ones, else those of an exported folder or of the backbone. In
    evaluation and prediction: those of training; other ones are an error.
    **Unreadable images** raise a warning and are replaced by the next readable one. At the end all of them are listed.
    An unreadable image to predict is an error.
    **Files.** Every file below ``root`` is used, or counted in a warning with the reason.
    **Limits.** One label per image. Without a test split there is no test score.

    Args:
        root: Folder with ``{train,val,test}/<class>/*``, or with ``<class>/*`` and ``split``. For a named source: the
            folder of its files, by default in the cache.
        source: ``"digits"`` (demo), ``"torchvision/<name>"`` or ``"vtab/<task>"``. ``None`` means the folders of
            ``root``, or the demo if ``root`` is not given.
        split: Fractions of train, val and test, such as ``"0.7/0.1/0.2"``. The images of each class folder
            ``root/<class>/`` are split by a hash of their content.
        processor: Backbone, exported folder or checkpoint that sets ``size``, ``mean`` and ``std`` if they are not
            given.
        size: Height and width of the images, in pixels (S).
        mean: Mean of each color channel, for values in [0, 1].
        std: Standard deviation of each color channel.
        min_area: Smallest area of a random training crop, as a fraction of the image in (0, 1]. ``None`` means 0.35 for
            the folders of ``root`` and 0.7 for a named source.
        flip: Whether half of the training images are mirrored. ``None`` means yes for the folders of ``root``, and no
            for named sources, which include digits and directions.
        batch_size: Images per batch and process.
        num_workers: Number of worker processes; 0 decodes in the training process.
        seed: Seed of the order, crops and flips.
        demo_size: Like ``size``, for the demo digits only, if ``size`` is not given.
        predict_images: Image file, folder of images, or list of files to predict.
    """

    def __init__(
        self,
        root: str | None = None,
        source: str | None = None,
        split: str | None = None,
        processor: str = "timm/tf_efficientnet_lite0",
        size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        min_area: float | None = None,
        flip: bool | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        demo_size: int | None = None,
        predict_images: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        _check_view(min_area, {"size": size, "demo_size": demo_size}, {"mean": mean, "std": std})
        check_split(split, root if source is None else None)
        self.root = root
        self.split = split
        self.source = source if source is not None or root is not None else DEMO
        self.processor = processor
        default = FOLDER_AUGMENTATION if self.source is None else SOURCE_AUGMENTATION
        self.augmentation = Augmentation(
            default.min_area if min_area is None else min_area, default.flip if flip is None else flip
        )
        self.predict_images = predict_images
        self.unreadable: dict[str, str] = {}
        self._given: dict[str, Any] = {"size": size, "mean": mean, "std": std}
        self._demo_size = demo_size
        self._splits: Splits | None = None
        self._predict: FileImages | None = None

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes, in order of their index; ``None`` if only predictions are served."""
        if self.predict_images is not None:
            return None
        return DIGITS if self.source == DEMO else list(self._load().names)

    @cached_property
    def predict_names(self) -> list[str]:
        """Paths of the images to predict, in order.

        Raises:
            ValueError: ``predict_images`` is not given, or contains no images.
            FileNotFoundError: An image does not exist.
        """
        if self.predict_images is None:
            raise ValueError("nothing to predict; give predict_images: a file, a folder of images, or a list of files.")
        named = [self.predict_images] if isinstance(self.predict_images, str) else self.predict_images
        given = [Path(name).expanduser() for name in named if name]
        if isinstance(self.predict_images, str) and given and given[0].is_dir():
            given = images_below(f"data.predict_images={self.predict_images!r}", given[0])
        if not given:
            raise ValueError(f"predict_images={self.predict_images!r} contains no images ({' '.join(suffixes())}).")
        if missing := [path for path in given if not path.is_file()]:
            raise FileNotFoundError(
                f"predict_images names {str(missing[0])!r}, which does not exist; give image files."
            )
        return [str(path) for path in given]

    @property
    def input(self) -> ImageInput:
        """Size, crop and normalization of the images."""
        training = TrainingInput.of(self, ImageInput, self.processor, predicting=self.predict_images is not None)
        return training.resolve(self._given, self._backbone_input)

    def _backbone_input(self) -> ImageInput:
        if None not in self._given.values():
            transformers = parse_backbone(self.processor).library == "transformers"
            return ImageInput(**self._given, rounding="down" if transformers else "even")
        known = image_input(self.processor)
        digits = self.source == DEMO and self.predict_images is None
        return replace(known, size=self._demo_size) if digits and self._demo_size is not None else known

    def prepare_data(self) -> None:
        """Download the dataset if its files are missing, once per machine."""
        if self.predict_images is None:
            self._load()

    def setup(self, stage: str) -> None:
        """List the images of a stage. Pixels are read batch by batch."""
        require("torchvision")  # otherwise the first batch would fail, in a worker process
        if stage == "predict":
            names = self.predict_names
            self._predict = FileImages(names, [0] * len(names))
        else:
            self._load()

    def train_dataloader(self) -> ResumableLoader:
        """Return random crops in a new order each epoch."""
        images = self._load().sets["train"]
        plan = self.plan([1] * len(images.labels), shuffle=True, kind=EpochPlan)
        dataset = ImageDataset(images, self.input, self.augmentation, self.seed)
        return self.resumed(ResumableLoader(dataset, plan, collate, self.num_workers))

    def val_dataloader(self) -> PlannedLoader:
        """Return center crops in a fixed order."""
        return self._evaluation("val")

    def test_dataloader(self) -> PlannedLoader:
        """Return center crops in a fixed order.

        Raises:
            ValueError: There is no test split.
        """
        if not self.has_test:
            raise ValueError(no_test_split(f"data.root={self.root!r}"))
        return self._evaluation("test")

    def predict_dataloader(self) -> PlannedLoader:
        """Return center crops in the order of ``predict_names``."""
        assert self._predict is not None
        plan = self.plan([1] * len(self._predict.labels), shuffle=False)
        return PlannedLoader(ImageDataset(self._predict, self.input), plan, _collate_readable, self.num_workers)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Record which images of the batch were replaced, and warn once for each."""
        for place, message in batch.pop("unreadable", {}).items():
            if place not in self.unreadable:
                self.unreadable[place] = message
                warnings.warn(f"{message}; another image takes its place.", stacklevel=2)
        return batch

    def teardown(self, stage: str) -> None:
        """List the images that were replaced. The next fit starts with an empty list."""
        super().teardown(stage)
        if self.unreadable:
            listed = "\n  ".join(sorted(self.unreadable))
            warnings.warn(f"unreadable images, replaced by others: {len(self.unreadable)}\n  {listed}", stacklevel=2)
            self.unreadable = {}

    @property
    def has_test(self) -> bool:
        """Whether there is a test split."""
        return "test" in self._load().sets

    def _evaluation(self, name: str) -> PlannedLoader:
        images = self._load().sets[name]
        plan = self.plan([1] * len(images.labels), shuffle=False)
        return PlannedLoader(ImageDataset(images, self.input), plan, collate, self.num_workers)

    def _load(self) -> Splits:
        """List the images once."""
        if self._splits is None:
            if self.source == DEMO:
                self._splits = load_digits()
            elif self.source is not None:
                self._splits = load_published(self.source, self.root or cache_folder() / "torchvision")
            else:
                assert self.root is not None
                self._splits = read_folder(self.root, self.split)
        return self._splits


def _check_view(
    min_area: float | None, sizes: Mapping[str, int | None], channels: Mapping[str, Sequence[float] | None]
) -> None:
    """Check the settings of crop and normalization.

    Raises:
        ValueError: A value is out of range, or does not have three channels.
    """
    if min_area is not None and not 0 < min_area <= 1:
        raise ValueError(f"min_area={min_area} is not a fraction of an image; choose 0 < min_area <= 1.")
    for name, size in sizes.items():
        check_count(name, size, "pixels", optional=True)
    for name, values in channels.items():
        if values is not None and len(values) != 3:
            raise ValueError(f"{name}={list(values)} has {len(values)} values; give three, for red, green and blue.")
    if (std := channels["std"]) is not None and min(std) <= 0:
        raise ValueError(f"std={list(std)} divides by {min(std)}; give three values above 0.")


def _collate_readable(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Join items to a batch. An image that was replaced is an error."""
    for item in items:
        if item["unreadable"]:
            raise ValueError(f"{next(iter(item['unreadable'].values()))}; leave it out, or repair it.")
    return collate(items)
