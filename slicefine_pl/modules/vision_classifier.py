"""Base class of image and video classifiers: metrics, the record of what training saw, and a plain export.

Shapes:  B batch · C classes
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.utilities import rank_zero_warn
from safetensors.torch import save_model
from torch import nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from slicefine_pl.inputs import ImageInput, VideoInput
from slicefine_pl.modules.classifier import Classifier
from slicefine_pl.modules.input_recorder import InputRecorder
from slicefine_pl.modules.lr_schedule import LRDecay


class VisionClassifier(InputRecorder, Classifier):
    """Train a network with a head for at least two named classes.

    **Logs.** Accuracy, top-5 accuracy if there are more than five classes, and the mean accuracy of the classes.
    **Input.** ``input`` is the record of what training saw: size, crop and so on. A fit copies it from its data module;
    checkpoints and exports contain it. With data loaders of your own, set it before you export.

    Args:
        backbone: Name of the backbone, or the network that was given.
        model: The network with its head.
        head: The last layers, which are trained with ``head_lr``.
        new_head: Whether the head is new and random.
        label_names: Name of each class, in order of its index, if known.
        num_classes: Number of classes (C), at least 2.
        trained_input: The record of an exported backbone, if there is one.
        label_smoothing: Label smoothing of the training loss, in [0, 1).
        decay: Shape of the fall of the learning rate after the warm-up.
        optimizer: Further optimizer settings, see :class:`~slicefine_pl.modules.fine_tuning.FineTuningModule`.
    """

    input_kind: ClassVar[type[ImageInput] | type[VideoInput]]

    def __init__(
        self,
        *,
        backbone: str | nn.Module,
        model: nn.Module,
        head: Iterable[nn.Module],
        new_head: bool,
        label_names: Sequence[str] | None,
        num_classes: int,
        trained_input: ImageInput | VideoInput | None,
        label_smoothing: float = 0.0,
        decay: LRDecay = "cosine",
        **optimizer: Any,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            label_smoothing=label_smoothing,
            metrics=_accuracies(num_classes),
            decay=decay,
            **optimizer,
        )
        self.backbone = backbone if isinstance(backbone, str) else type(backbone).__name__
        self.model = model
        self.label_names = None if label_names is None else list(label_names)
        self.untrained_head = new_head
        self.input = trained_input
        self._head = {id(parameter) for layer in head for parameter in layer.parameters()}

    def head(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the last layers."""
        yield from (parameter for parameter in self.model.parameters() if id(parameter) in self._head)

    def on_train_start(self) -> None:
        """Record the input of training; warn if the data do not specify it."""
        super().on_train_start()
        if self.input is None:
            kind = self.input_kind.__name__
            rank_zero_warn(
                "the data have no input attribute, so an export contains what the backbone expects; if training sees "
                f"something else, set module.input = {kind}(...) before the export."
            )

    def write_plain(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Write ``model.safetensors``, and ``config.json`` with ``config``, class names and input record."""
        folder.mkdir()
        settings = {**config, "label_names": self.label_names, **self.input_record}
        (folder / "config.json").write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
        save_model(self.model, str(folder / "model.safetensors"))


def _accuracies(num_classes: int) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "mean_class": MulticlassAccuracy(num_classes, average="macro"),
    }
    if num_classes > 5:
        metrics["top5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
    return metrics
