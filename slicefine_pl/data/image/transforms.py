"""Turn images into tensors: a random crop in training, the center crop otherwise.

The random crop of image i in epoch e depends only on (seed, e, i), so it is the same in any worker and in a resumed
run.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from slicefine_pl.data.image.datasets import ImageSet
from slicefine_pl.data.image.decoding import UnreadableImageError
from slicefine_pl.data.image.preprocessing import RESAMPLING
from slicefine_pl.inputs import ImageInput

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_UNREADABLE = 100  # unreadable images in a row after which loading stops


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images.

    Attributes:
        min_area: Smallest area of a random crop, as a fraction of the image in (0, 1].
        flip: Whether half of the images are mirrored. Wrong for digits and letters.
    """

    min_area: float
    flip: bool


class ImageDataset(Dataset[dict[str, Any]]):
    """Cropped and normalized images as tensors, with labels.

    An unreadable image is replaced by the next readable one, so that every process gets the same number of images.

    Args:
        images: Images of one split.
        spec: Size, crop and normalization.
        augmentation: Random changes of training images; ``None`` takes the center crop.
        seed: Seed of the random crops, together with the epoch that an index of ``EpochPlan`` contains.
    """

    def __init__(
        self,
        images: ImageSet,
        spec: ImageInput,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.images = images
        self._spec = spec
        self._augmentation = augmentation
        self._seed = seed
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``images``, shape ``(3, S, S)``, ``labels``, and the ``unreadable`` images that this one replaces.

        Raises:
            ValueError: Too many images in a row are unreadable.
        """
        epoch, index = divmod(index, len(self))
        unreadable: dict[str, str] = {}
        for place in range(index, index + min(MAX_UNREADABLE, len(self))):
            row = place % len(self)
            try:
                image = self.images.read(row)
            except UnreadableImageError as error:
                unreadable[self.images.place(row)] = str(error)
                continue
            view = self._view(image, epoch, index)
            return {"images": view, "labels": self.images.labels[row], "unreadable": unreadable}
        several = f"{len(unreadable)} images in a row cannot be read, the first: " if len(unreadable) > 1 else ""
        raise ValueError(f"{several}{next(iter(unreadable.values()))}; leave it out, or repair it.")

    def _view(self, image: "Image", epoch: int, index: int) -> Tensor:
        if self._augmentation is None:
            view = _pad(_pixels(center_crop(image, self._spec)), self._spec.size)
        else:
            state = np.random.SeedSequence([self._seed, epoch, index]).generate_state(1, np.uint64)
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(int(state[0]))  # torch.manual_seed would seed the GPU too
                view = _pixels(_random_crop(image, self._spec, self._augmentation.min_area))
                if self._augmentation.flip and torch.rand(()) < 0.5:
                    view = view.flip(-1)
        return view.sub_(self._mean).div_(self._std)


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Join items to a batch: ``images``, shape ``(B, 3, S, S)``, and ``labels``, shape ``(B,)``.

    If images were replaced, ``unreadable`` maps them to error messages. ``counted``, bool of shape ``(B,)``, is then
    ``False`` for their replacements, which metrics would count twice.
    """
    batch = {
        "images": torch.stack([item["images"] for item in items]),
        "labels": torch.tensor([item["labels"] for item in items]),
    }
    unreadable = {place: message for item in items for place, message in item["unreadable"].items()}
    counted = torch.tensor([not item["unreadable"] for item in items])
    return {**batch, "counted": counted, "unreadable": unreadable} if unreadable else batch


def center_crop(image: "Image", spec: ImageInput) -> "Image":
    """Resize an image and crop its center, in one step that reads only the pixels of the crop.

    The resized image, which is enormous for an image of 20,000 x 1 pixels, is never made.

    Args:
        image: RGB image of any size.
        spec: ``resize_size`` is the length of the short side, or of both, after resizing.

    Returns:
        The crop, with ``spec.size`` pixels on each side, or fewer if the resized image is smaller.
    """
    short, target = min(image.size), spec.resize_size
    squash = spec.crop_mode == "squash"
    resized = [target if squash or side == short else int(target * side / short) for side in image.size]
    width, height = (min(spec.size, side) for side in resized)
    rounded = int if spec.rounding == "down" else round
    left, top = (rounded((side - shown) / 2) for side, shown in zip(resized, (width, height), strict=True))
    corners = zip((left, top, left + width, top + height), resized * 2, image.size * 2, strict=True)
    box = tuple(min(at * own / side, own) for at, side, own in corners)  # in fractional pixels of the image
    return image.resize((width, height), _filter(spec), box=cast(tuple[float, float, float, float], box))


def _random_crop(image: "Image", spec: ImageInput, min_area: float) -> "Image":
    """Crop a random part and resize it. Pillow reads only the pixels of the part."""
    from torchvision.transforms import RandomResizedCrop

    top, left, height, width = RandomResizedCrop.get_params(image, [min_area, 1.0], [3 / 4, 4 / 3])
    box = (left, top, left + width, top + height)
    return image.resize((spec.size, spec.size), _filter(spec), box=box)


def _pad(view: Tensor, size: int) -> Tensor:
    """Add black borders if the crop is larger than the resized image."""
    from torchvision.transforms.functional import center_crop as center_crop_or_pad

    return cast(Tensor, center_crop_or_pad(view, [size]))


def _filter(spec: ImageInput) -> int:
    return next(number for number, name in RESAMPLING.items() if name == spec.interpolation)


def _pixels(image: "Image") -> Tensor:
    """Return the values in [0, 1], shape ``(3, H, W)``."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().div(255)
