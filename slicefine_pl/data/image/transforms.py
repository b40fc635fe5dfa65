"""What the network sees of an image: a random crop in training, the centre otherwise.

Answers: which pixels does image i give in epoch e?  A pure function of (seed, epoch, i), so that neither workers nor a
resumed run can change it.
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
        self._given = given
        self._augmentation = augmentation
        self._seed = seed
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1) for values in (given.mean, given.std))

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
        if self._augmentation is None:
            view = _padded(_pixels(centre(image, self._given)), self._given.size)
        else:
            state = np.random.SeedSequence([self._seed, epoch, index]).generate_state(1, np.uint64)
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(int(state[0]))  # torch.manual_seed would reach the GPU's too
                view = _pixels(_random_crop(image, self._given, self._augmentation.min_area))
                if self._augmentation.flip and torch.rand(()) < 0.5:
                    view = view.flip(-1)
        return view.sub_(self._mean).div_(self._std)


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Join items to a batch: ``images``, shape ``(B, 3, S, S)``, and ``labels``, shape ``(B,)``.

    Where images were replaced, ``broken`` names them, and ``counted``, bool of shape ``(B,)``, is false for their
    replacements, which scores would count twice.
    """
    batch = {
        "images": torch.stack([item["images"] for item in items]),
        "labels": torch.tensor([item["labels"] for item in items]),
    }
    broken = {place: told for item in items for place, told in item["broken"].items()}
    counted = torch.tensor([not item["broken"] for item in items])
    return {**batch, "counted": counted, "broken": broken} if broken else batch


def centre(image: "Image", given: ImageInput) -> "Image":
    """Resize to ``given.edge``, the short side or both, and cut out the middle, reading only the pixels that it shows.

    The resized whole, which for an image of 20,000 x 1 pixels is enormous, is never made.

    Returns:
        The middle, ``size`` on each side, or the side of the resized image where that is smaller.
    """
    short, edge = min(image.size), given.edge
    squash = given.crop_mode == "squash"
    resized = [edge if squash or side == short else int(edge * side / short) for side in image.size]
    width, height = (min(given.size, side) for side in resized)
    whole = int if given.rounding == "down" else round
    left, top = (whole((side - shown) / 2) for side, shown in zip(resized, (width, height), strict=True))
    corners = zip((left, top, left + width, top + height), resized * 2, image.size * 2, strict=True)
    box = tuple(min(at * own / side, own) for at, side, own in corners)  # in pixels of the image, with fractions
    return image.resize((width, height), _method(given), box=cast(tuple[float, float, float, float], box))


def _random_crop(image: "Image", given: ImageInput, min_area: float) -> "Image":
    """Cut out a random part, and resize it; Pillow reads the pixels of the part alone."""
    from torchvision.transforms import RandomResizedCrop

    top, left, height, width = RandomResizedCrop.get_params(image, [min_area, 1.0], [3 / 4, 4 / 3])
    box = (left, top, left + width, top + height)
    return image.resize((given.size, given.size), _method(given), box=box)


def _padded(view: Tensor, size: int) -> Tensor:
    """Black around it, where the network's crop is larger than its resized image."""
    from torchvision.transforms.functional import center_crop

    return cast(Tensor, center_crop(view, [size]))


def _method(given: ImageInput) -> int:
    return next(number for number, name in RESAMPLING.items() if name == given.interpolation)


def _pixels(image: "Image") -> Tensor:
    """Values in [0, 1], shape ``(3, H, W)``."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().div(255)
