"""Which test images does the network get right?  A picture of some of them, with both labels.

Knows Lightning; knows neither modules nor data of ours, but asks the data module for ``input`` to undo the
normalization.

Shapes:  B batch · H, W height and width in pixels · C classes
"""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from slicefine_pl.analysis.plots import png_bytes
from slicefine_pl.files.atomic import warn_on_error, write_atomic
from slicefine_pl.optional import optional_imports

COLUMNS = 8
LINE = 17  # characters of a title that fit above an image


class PredictionGrid(Callback):
    """Draw some images of the test set, spread evenly over it, with their true and their predicted class.

    **When.** Keeps a few images of each test batch and predicts them again; at the end of the test writes
    ``predictions.png`` into the run's log folder. Draws no random numbers.
    **Limits.** Needs matplotlib, batches with ``"images"`` ``(B, 3, H, W)`` and ``"labels"`` ``(B,)``, and a
    ``predict_step`` that returns ``(B, C)``; under several processes it shows what the first one sees.

    Args:
        images: How many to draw.
    """

    def __init__(self, images: int = 40) -> None:
        if images < 1:
            raise ValueError(f"images={images} is too few for a picture; choose at least 1.")
        self.images = images
        self._kept: list[tuple[Tensor, int, int]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._kept = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep this batch's share of the images."""
        batches = int(trainer.num_test_batches[dataloader_idx])
        share = self.images * (batch_idx + 1) // batches - self.images * batch_idx // batches
        if not share:
            return
        rows = torch.linspace(0, len(batch["labels"]) - 1, min(share, len(batch["labels"]))).long()
        some = {"images": batch["images"][rows], "labels": batch["labels"][rows]}
        with torch.no_grad():  # on all processes: a network that they share computes nothing for one alone
            guesses: Any = trainer.strategy.predict_step(some, batch_idx)
        labels = zip(some["labels"].tolist(), guesses.argmax(-1).tolist(), strict=True)
        kept = zip(some["images"].float().cpu(), labels, strict=True)
        self._kept += [(image, truth, guess) for image, (truth, guess) in kept]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the picture."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asking for it takes all processes
        if self._kept and trainer.is_global_zero:
            data: Any = getattr(trainer, "datamodule", None)
            with warn_on_error(folder / "predictions.png"), optional_imports():
                draw(self._kept, getattr(pl_module, "label_names", None), getattr(data, "input", None), folder)


def draw(kept: list[tuple[Tensor, int, int]], names: list[str] | None, given: Any, folder: Path) -> Path:
    """Write ``folder/predictions.png``.

    Args:
        kept: Normalised image ``(3, H, W)``, true and predicted class of each.
        names: Of the classes; ``None`` shows their numbers.
        given: Has the ``mean`` and ``std`` of the normalization; ``None`` stretches each image to its range.
        folder: Where to.

    Returns:
        The file.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = -(-len(kept) // COLUMNS)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
    figure = Figure(figsize=(1.4 * COLUMNS, 1.75 * rows + 0.5), layout=layout, dpi=100)
    for place, (image, truth, guess) in enumerate(kept):
        axes = figure.add_subplot(rows, COLUMNS, place + 1)
        axes.imshow(_visible(image, given))
        axes.set(xticks=[], yticks=[])
        told = [str(label) if names is None else names[label] for label in (truth, guess)]
        text = _title(*told)
        axes.set_title(text, fontsize=9, color="black" if truth == guess else "crimson")
        axes.spines[:].set(linewidth=0.5 if truth == guess else 3, edgecolor="silver" if truth == guess else "crimson")
    right = sum(truth == guess for _, truth, guess in kept)
    told_wrong = "" if right == len(kept) else "; the framed ones are wrong"
    figure.suptitle(f"Predictions on test images: {right} of these {len(kept)} are right{told_wrong}", fontsize=12)
    return write_atomic(folder / "predictions.png", png_bytes(figure))


def _visible(image: Tensor, given: Any) -> Any:
    """Values in [0, 1], shape ``(H, W, 3)``."""
    if given is None:
        image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-6)
    else:
        image = image * torch.tensor(given.std)[:, None, None] + torch.tensor(given.mean)[:, None, None]
    return image.clamp(0, 1).permute(1, 2, 0).numpy()


def _title(truth: str, guess: str) -> str:
    """The predicted class, and the true one if it is another; what is too long for one line takes two."""
    if truth == guess:
        return _short(guess)
    together = f"{guess}, not {truth}"
    return together if len(together) <= LINE else f"{_short(guess)}\n{_short(f'not {truth}')}"


def _short(name: str) -> str:
    return name if len(name) <= LINE else f"{name[: LINE - 1]}…"
