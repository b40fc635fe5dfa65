"""The callback that draws test images with their true and predicted classes.

If the data module has an ``input`` with ``mean`` and ``std``, the images' normalization is undone.

Shapes:  B batch · H, W height and width in pixels · C classes
"""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from slicefine_pl.analysis.plots import png_bytes
from slicefine_pl.arguments import check_count
from slicefine_pl.callbacks.support.plotting import can_plot
from slicefine_pl.files.atomic import warn_on_error, write_atomic

COLUMNS = 8
MAX_TITLE = 17  # characters that fit above an image


class PredictionGrid(Callback):
    """Draw images from all over the test set, each with its true and its predicted class.

    **When.** A few images of each test batch are kept and predicted again. At the end of the test
    ``predictions.png`` is written to the run's log folder. No random numbers are drawn.
    **Limits.** Needs batches with ``"images"`` ``(B, 3, H, W)`` and ``"labels"`` ``(B,)``, and a ``predict_step`` that
    returns ``(B, C)``. With several processes it shows the images of the first. Without matplotlib, which ``setup``
    checks, nothing is drawn.

    Args:
        images: Number of images.

    Raises:
        ValueError: ``images`` is less than 1.
    """

    def __init__(self, images: int = 40) -> None:
        check_count("images", images, "images")
        self.images = images
        self._kept: list[tuple[Tensor, int, int]] = []
        self._plots = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check whether the picture can be drawn, before a fit that is followed by a test."""
        self._plots = can_plot(self, "predictions.png")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the images of an earlier test."""
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
        if not share or not self._plots:
            return
        rows = torch.linspace(0, len(batch["labels"]) - 1, min(share, len(batch["labels"]))).long()
        chosen = {"images": batch["images"][rows], "labels": batch["labels"][rows]}
        with torch.no_grad():  # on all processes, because a sharded network computes nothing for one alone
            outputs_of_chosen: Any = trainer.strategy.predict_step(chosen, batch_idx)
        labels = zip(chosen["labels"].tolist(), outputs_of_chosen.argmax(-1).tolist(), strict=True)
        kept = zip(chosen["images"].float().cpu(), labels, strict=True)
        self._kept += [(image, label, predicted) for image, (label, predicted) in kept]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the picture."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a collective call: all processes read it
        if self._kept and trainer.is_global_zero:
            names = getattr(pl_module, "label_names", None)
            normalization = getattr(getattr(trainer, "datamodule", None), "input", None)
            with warn_on_error(folder / "predictions.png"):
                plot_predictions(self._kept, names, normalization, folder)


def plot_predictions(
    kept: list[tuple[Tensor, int, int]], names: list[str] | None, normalization: Any, folder: Path
) -> Path:
    """Write ``folder/predictions.png``.

    Args:
        kept: Normalized image ``(3, H, W)``, true class and predicted class of each.
        names: Names of the classes; ``None`` shows their numbers.
        normalization: Object with the ``mean`` and ``std`` of each channel; ``None`` stretches each image to its range.
        folder: Folder of the file.

    Returns:
        The file.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = -(-len(kept) // COLUMNS)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
    figure = Figure(figsize=(1.4 * COLUMNS, 1.75 * rows + 0.5), layout=layout, dpi=100)
    for place, (image, label, predicted) in enumerate(kept):
        axes = figure.add_subplot(rows, COLUMNS, place + 1)
        axes.imshow(denormalize(image, normalization))
        axes.set(xticks=[], yticks=[])
        shown = [str(each) if names is None else names[each] for each in (label, predicted)]
        correct = label == predicted
        axes.set_title(image_title(*shown), fontsize=9, color="black" if correct else "crimson")
        axes.spines[:].set(linewidth=0.5 if correct else 3, edgecolor="silver" if correct else "crimson")
    right = sum(label == predicted for _, label, predicted in kept)
    wrong = "" if right == len(kept) else "; the framed ones are wrong"
    figure.suptitle(f"Predictions on test images: {right} of these {len(kept)} are right{wrong}", fontsize=12)
    return write_atomic(folder / "predictions.png", png_bytes(figure))


def denormalize(image: Tensor, normalization: Any) -> Any:
    """Return an image for matplotlib: values in [0, 1], shape ``(H, W, 3)``.

    Args:
        image: Normalized image, shape ``(3, H, W)``.
        normalization: See :func:`plot_predictions`.
    """
    if normalization is None:
        image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-6)
    else:
        mean, std = torch.tensor(normalization.mean), torch.tensor(normalization.std)
        image = image * std[:, None, None] + mean[:, None, None]
    return image.clamp(0, 1).permute(1, 2, 0).numpy()


def image_title(label: str, predicted: str) -> str:
    """Return the predicted class, and the true class if it is another; on two lines if one is too short."""
    if label == predicted:
        return _shorten(predicted)
    together = f"{predicted}, not {label}"
    return together if len(together) <= MAX_TITLE else f"{_shorten(predicted)}\n{_shorten(f'not {label}')}"


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_TITLE else f"{name[: MAX_TITLE - 1]}…"
