"""What the network sees of an image: a random crop in training, the centre otherwise.

Answers: which pixels does image i give in epoch e?  A pure function of (seed, epoch, i), so that neither workers nor a
resumed run can change it.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from slicefine_pl.data.image.input import RESAMPLING, ImageInput
from slicefine_pl.data.image.pixels import UnreadableImageError
from slicefine_pl.data.image.sets import ImageSet

if TYPE_CHECKING:
    from PIL.Image import Image

TRIES = 100  # unreadable images in a row after which the set itself must be broken


@dataclass(frozen=True)
class Augmentation:
    """How training images vary.

    Attributes:
        min_area: Smallest share of the image that a random crop takes, in (0, 1].
        flip: Whether half of the images are mirrored; wrong for digits and letters.
    """

    min_area: float
    flip: bool


class ImageDataset(Dataset[dict[str, Any]]):
    """Views of images as tensors, with their labels.

    An unreadable image is replaced by the next readable one, so that every process gets equally many; the item names
    what it stands for.

    Args:
        images: Where they come from.
        given: Size, mean and standard deviation of the views.
        augmentation: How training images vary; ``None`` takes the centre.
        seed: Decides the random crops, with the epoch that the index of an ``EpochPlan`` carries.
    """

    def __init__(
        self,
        images: ImageSet,
        given: ImageInput,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.images = images
        self._random = augmentation is not None
        self._seed = seed
        self._transform = _transform(given, augmentation)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the view, shape ``(3, S, S)``, the label, and which unreadable images it stands for."""
        epoch, index = divmod(index, len(self))
        broken: dict[str, str] = {}
        for place in range(index, index + min(TRIES, len(self))):
            row = place % len(self)
            try:
                image = self.images.read(row)
            except UnreadableImageError as error:
                broken[self.images.place(row)] = str(error)
                continue
            return {"images": self._view(image, epoch, index), "labels": self.images.labels[row], "broken": broken}
        several = f"{len(broken)} images in a row cannot be read, the first: " if len(broken) > 1 else ""
        raise ValueError(f"{several}{next(iter(broken.values()))}; leave it out, or repair it.")

    def _view(self, image: "Image", epoch: int, index: int) -> Tensor:
        if not self._random:
            return cast(Tensor, self._transform(image))
        state = np.random.SeedSequence([self._seed, epoch, index]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(state[0]))  # torch.manual_seed would reach the GPU's generator too
            return cast(Tensor, self._transform(image))


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Join items to a batch: ``images`` ``(B, 3, S, S)``, ``labels`` ``(B,)``, and ``broken`` where there are any."""
    batch = {
        "images": torch.stack([item["images"] for item in items]),
        "labels": torch.tensor([item["labels"] for item in items]),
    }
    broken = {place: told for item in items for place, told in item["broken"].items()}
    return {**batch, "broken": broken} if broken else batch


def centre(image: "Image", given: ImageInput) -> "Image":
    """Resize the short side to ``size / crop`` and cut out the middle, reading only the pixels that it shows.

    The resized whole, which for an image of 20,000 x 1 pixels is enormous, is never made.

    Returns:
        The middle, ``size`` on each side, or the side of the resized image where that is smaller.
    """
    short, edge = min(image.size), int(given.size / given.crop + 1e-6)
    resized = [edge if side == short else int(edge * side / short) for side in image.size]
    width, height = (min(given.size, side) for side in resized)
    left, top = (round((side - shown) / 2) for side, shown in zip(resized, (width, height), strict=True))
    corners = zip((left, top, left + width, top + height), resized * 2, image.size * 2, strict=True)
    box = tuple(min(at * own / side, own) for at, side, own in corners)  # in pixels of the image, with fractions
    method = next(number for number, name in RESAMPLING.items() if name == given.interpolation)
    return image.resize((width, height), method, box=cast(tuple[float, float, float, float], box))


def _transform(given: ImageInput, augmentation: Augmentation | None) -> Any:
    from torchvision.transforms import InterpolationMode, v2

    norm = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(given.mean), list(given.std))]
    if augmentation is None:
        padded = v2.CenterCrop(given.size)  # where the network's crop is larger than its resized image
        return v2.Compose([partial(centre, given=given), v2.PILToTensor(), padded, *norm])
    mode = InterpolationMode(given.interpolation)
    crop = v2.RandomResizedCrop(given.size, (augmentation.min_area, 1.0), interpolation=mode, antialias=True)
    flip = [v2.RandomHorizontalFlip()] if augmentation.flip else []
    return v2.Compose([v2.PILToTensor(), crop, *flip, *norm])
