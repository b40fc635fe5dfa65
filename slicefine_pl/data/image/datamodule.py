"""Labelled images as batches: from folders, torchvision's datasets, VTAB-1k, or demo digits out of the registry."""

import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from slicefine_pl.data.batching import EpochPlan, PlannedLoader, ResumableDataModule, ResumableLoader
from slicefine_pl.data.cache import cache_folder
from slicefine_pl.data.folders import no_test_split
from slicefine_pl.data.image.demo import DIGITS, load_digits
from slicefine_pl.data.image.input import ImageInput, image_input
from slicefine_pl.data.image.pixels import suffixes
from slicefine_pl.data.image.published import load_published
from slicefine_pl.data.image.sets import FileImages, Splits, images_below, read_folder
from slicefine_pl.data.image.views import Augmentation, ImageDataset, collate
from slicefine_pl.data.labels import NamedClasses
from slicefine_pl.data.shares import check_split

DEMO = "digits"


class ImageDataModule(NamedClasses, ResumableDataModule):
    """Serve images as batches of ``images``, shape ``(B, 3, S, S)``, normalised, and ``labels``, shape ``(B,)``.

    **Batches.** Reshuffled each epoch; crops and flips follow from seed, epoch and image alone, whatever the workers
    do, and a resumed run sees what an uninterrupted one would see. Every process gets equally many.
    **Broken images.** One that cannot be read is named in a warning and replaced by the next readable one; at the end
    all are listed. One to predict raises.
    **Files.** Every file below ``root`` is used, or counted in a warning that says why not.
    **Limits.** One label per image.  Without a test split there is no test score.

    Args:
        root: Folder with ``{train,val,test}/<class>/*``, or with ``<class>/*`` and ``split``; for a named source the
            folder of its files, by default in the cache.
        source: ``"digits"`` (demo), ``"torchvision/<name>"`` or ``"vtab/<task>"``; ``None`` reads the folders of
            ``root``, or without a root the demo.
        split: Shares of train, val and test, such as ``"0.7/0.1/0.2"``, into which the images of each class folder
            ``root/<class>/`` are split by a hash of their content.
        processor: Backbone whose ``size``, ``mean`` and ``std`` count where these are not given.
        size: Height and width of the views, in pixels.
        mean: Of the three colours, for values in [0, 1].
        std: Of the three colours.
        min_area: Smallest share of the image that a random training crop takes, in (0, 1].
        flip: Whether half of the training images are mirrored.
        batch_size: Images per batch and process.
        num_workers: Processes that decode ahead; 0 decodes in this one.
        seed: Of the order, crops and flips.
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
        min_area: float = 0.35,
        flip: bool = True,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        predict_images: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        if not 0 < min_area <= 1:
            raise ValueError(f"min_area={min_area} is no share of an image; choose 0 < min_area <= 1.")
        if size is not None and size < 1:
            raise ValueError(f"size={size} is too small; give the height and width of the views in pixels.")
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != 3:
                raise ValueError(
                    f"{name}={list(values)} has {len(values)} values; give three, for red, green and blue."
                )
        if std is not None and min(std) <= 0:
            raise ValueError(f"std={list(std)} divides by {min(std)}; give three values above 0.")
        check_split(split, root if source is None else None)
        self.root = root
        self.split = split
        self.source = source if source is not None or root is not None else DEMO
        self.processor = processor
        self.augmentation = Augmentation(min_area, flip)
        self.predict_images = predict_images
        self.broken: dict[str, str] = {}
        self._given = (size, mean, std)
        self._input: ImageInput | None = None
        self._splits: Splits | None = None
        self._predict: ImageDataset | None = None

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes in order of their index; ``None`` when only predicting: then the model knows."""
        if self.predict_images is not None:
            return None
        return DIGITS if self.source == DEMO else list(self._load().names)

    @cached_property
    def predict_names(self) -> list[str]:
        """Paths of the images to predict, in order."""
        if self.predict_images is None:
            raise ValueError("nothing to predict; give predict_images: a file, a folder of images, or a list of files.")
        named = [self.predict_images] if isinstance(self.predict_images, str) else self.predict_images
        given = [Path(name).expanduser() for name in named if name]
        if isinstance(self.predict_images, str) and given and given[0].is_dir():
            given = images_below(f"data.predict_images={self.predict_images!r}", given[0])
        if not given:
            raise ValueError(f"predict_images={self.predict_images!r} gives no images ({' '.join(suffixes())}).")
        if missing := [path for path in given if not path.is_file()]:
            raise FileNotFoundError(
                f"predict_images names {str(missing[0])!r}, which does not exist; give image files."
            )
        return [str(path) for path in given]

    @property
    def input(self) -> ImageInput:
        """Size, mean and standard deviation of the views."""
        if self._input is None:
            size, mean, std = self._given
            if size is not None and mean is not None and std is not None:
                self._input = ImageInput(size, tuple(mean), tuple(std))
            else:
                known = image_input(self.processor)
                self._input = ImageInput(
                    size or known.size,
                    tuple(mean or known.mean),
                    tuple(std or known.std),
                    known.crop,
                    known.interpolation,
                )
        return self._input

    def prepare_data(self) -> None:
        """Download what is not there yet, once per machine."""
        if self.predict_images is None:
            self._load()

    def setup(self, stage: str) -> None:
        """List the images of the stage; pixels are read batch by batch."""
        if stage == "predict":
            names = self.predict_names
            self._predict = ImageDataset(FileImages(names, [0] * len(names)), self.input)
        else:
            self._load()

    def train_dataloader(self) -> ResumableLoader:
        """Random views in a new order each epoch."""
        images = self._load().sets["train"]
        plan = self.plan([1] * len(images.labels), shuffle=True, kind=EpochPlan)
        dataset = ImageDataset(images, self.input, self.augmentation, self.seed)
        return self.resumed(ResumableLoader(dataset, plan, collate, self.num_workers))

    def val_dataloader(self) -> PlannedLoader:
        """Central views in a fixed order."""
        return self._evaluation("val")

    def test_dataloader(self) -> PlannedLoader:
        """Central views in a fixed order.

        Raises:
            ValueError: There is no test split.
        """
        if not self.has_test:
            raise ValueError(no_test_split(f"data.root={self.root!r}"))
        return self._evaluation("test")

    def predict_dataloader(self) -> PlannedLoader:
        """Central views in the order of ``predict_names``."""
        assert self._predict is not None
        plan = self.plan([1] * len(self._predict), shuffle=False)
        return PlannedLoader(self._predict, plan, _readable, self.num_workers)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Note which images of the batch were replaced, and warn once for each."""
        for place, told in batch.pop("broken", {}).items():
            if place not in self.broken:
                self.broken[place] = told
                warnings.warn(f"{told}; another image takes its place.", stacklevel=2)
        return batch

    def teardown(self, stage: str) -> None:
        """List the images that were replaced; the next fit starts anew."""
        super().teardown(stage)
        if self.broken:
            listed = "\n  ".join(sorted(self.broken))
            warnings.warn(f"unreadable images, replaced by others: {len(self.broken)}\n  {listed}", stacklevel=2)
            self.broken = {}

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


def _readable(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Join items to a batch, none of which may stand for another image."""
    for item in items:
        if item["broken"]:
            raise ValueError(f"{next(iter(item['broken'].values()))}; leave it out, or repair it.")
    return collate(items)
