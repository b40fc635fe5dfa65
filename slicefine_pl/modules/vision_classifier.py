"""What image and video classifiers share: a network with a new head, how its classes are counted, and a plain export.

Shapes:  B batch · C classes
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.utilities import rank_zero_warn
from safetensors.torch import save_model
from torch import nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from slicefine_pl.inputs import RECORD, ImageInput, VideoInput, read_input
from slicefine_pl.modules.classifier import Classifier
from slicefine_pl.modules.fine_tuning import LRDecay


class VisionClassifier(Classifier):
    """Train a network with a head for at least two named classes.

    **Logs.** Accuracy, with more than five classes also top-5 accuracy, and the mean of the classes' accuracies.
    **Input.** ``input`` is what training saw: size, crop and so on.  A fit takes it from its data module; checkpoints
    and exports keep it.  With loaders of your own, set it before you export.

    Args:
        backbone: What the network was loaded from.
        model: The network with its head.
        head: Its last layers, which learn with ``head_lr``.
        new_head: Whether the head is new, that is random.
        label_names: Name of each class, in order of the label, where they are known.
        num_classes: Classes, at least 2.
        label_smoothing: As in :class:`Classifier`.
        lr: Peak learning rate.
        head_lr: Peak learning rate of the head; ``None`` means ``lr``.
        weight_decay: Decoupled weight decay of AdamW.
        warmup: Share of all steps over which the rate rises.
        decay: Shape of the fall after the warm-up.
        seen: What it was trained with, where that is known.
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
        label_smoothing: float,
        lr: float,
        head_lr: float | None,
        weight_decay: float,
        warmup: float,
        decay: LRDecay,
        seen: ImageInput | VideoInput | None,
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
        self.untrained_head = new_head
        self.input = seen
        self._head = {id(parameter) for layer in head for parameter in layer.parameters()}

    def head(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the last layers."""
        yield from (parameter for parameter in self.model.parameters() if id(parameter) in self._head)

    def record_input(self, data: object) -> bool:
        """Take over what ``data`` are about to show in training, if they say so."""
        seen = getattr(data, "input", None)
        if known := isinstance(seen, self.input_kind):
            self.input = seen
        return known

    def on_train_start(self) -> None:
        """Take over from the data what training sees."""
        super().on_train_start()
        known = self.record_input(self.trainer.datamodule)  # type: ignore[attr-defined]
        if not known and self.input is None:
            kind = self.input_kind.__name__
            rank_zero_warn(
                "the data have no input attribute, so an export states what the backbone expects; if training sees "
                f"something else, set module.input = {kind}(...) before the export."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what training saw."""
        super().on_save_checkpoint(checkpoint)
        checkpoint.update(self.input_record)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what training saw, where the checkpoint says so.

        Raises:
            ValueError: The checkpoint was trained on other classes, or what it says of its input is damaged.
        """
        super().on_load_checkpoint(checkpoint)
        if RECORD in checkpoint:
            self.input = read_input(checkpoint[RECORD], self.input_kind)

    @property
    def input_record(self) -> dict[str, Any]:
        """What training saw, as checkpoints and exports keep it; empty where it is not known."""
        return {} if self.input is None else {RECORD: asdict(self.input)}

    def write_plain(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Write ``model.safetensors``, and ``config.json`` with ``config``, the names of the classes and the input."""
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
