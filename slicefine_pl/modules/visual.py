"""What image and video classifiers share: a network with a new head, how its classes are counted, and a plain export.

Shapes:  B batch · C classes
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from slicefine_pl.modules.classifier import Classifier
from slicefine_pl.modules.scheduled import Decay


class VisualClassifier(Classifier):
    """Train a network with a head for at least two named classes.

    **Logs.** Accuracy, with more than five classes also top-5 accuracy, and the mean of the classes' accuracies.

    Args:
        backbone: What the network was loaded from.
        model: The network with its head.
        head: Its last layers, which learn with ``head_lr``.
        fresh: Whether the head is new, that is random.
        label_names: Name of each class, in order of the label, where they are known.
        num_classes: Classes, at least 2.
        label_smoothing: As in :class:`Classifier`.
        lr: Peak learning rate.
        head_lr: Peak learning rate of the head; ``None`` means ``lr``.
        weight_decay: Decoupled weight decay of AdamW.
        warmup: Share of all steps over which the rate rises.
        decay: Shape of the fall after the warm-up.
    """

    def __init__(
        self,
        *,
        backbone: str | nn.Module,
        model: nn.Module,
        head: Iterable[nn.Module],
        fresh: bool,
        label_names: Sequence[str] | None,
        num_classes: int,
        label_smoothing: float,
        lr: float,
        head_lr: float | None,
        weight_decay: float,
        warmup: float,
        decay: Decay,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            lr=lr,
            head_lr=head_lr,
            weight_decay=weight_decay,
            warmup=warmup,
            decay=decay,
            label_smoothing=label_smoothing,
            metrics=_accuracies(num_classes),
        )
        self.backbone = backbone if isinstance(backbone, str) else type(backbone).__name__
        self.model = model
        self.label_names = None if label_names is None else list(label_names)
        self.untrained_head = fresh
        self._head = {id(parameter) for layer in head for parameter in layer.parameters()}

    def head(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the last layers."""
        yield from (parameter for parameter in self.model.parameters() if id(parameter) in self._head)

    def write_plain(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Write ``model.safetensors``, and ``config.json`` with ``config`` and the names of the classes."""
        folder.mkdir()
        settings = {**config, "label_names": self.label_names}
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
