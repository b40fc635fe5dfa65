"""Base class of all classifiers: loss, metrics, and checks that a new head is trained before it is used.

A subclass adds the network. Nothing here depends on slices or masks.

Shapes:  B batch · C classes (1 for regression)
"""

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassMatthewsCorrCoef

from slicefine_pl.modules.fine_tuning import FineTuningModule

Batch = Mapping[str, Tensor]


class Classifier(FineTuningModule):
    """Train a network that maps a batch to logits, shape ``(B, C)``. With C = 1 it is a regression.

    **Logs.** ``train/loss``; at the end of an epoch ``val/loss`` and ``test/loss`` with accuracy, macro F1 and Matthews
    correlation (classification), or Pearson and Spearman correlation (regression). They are computed over all examples
    of all processes.
    **Batches.** Mappings with ``labels`` and the inputs of ``forward``. If a batch has ``counted``, bool of shape
    ``(B,)``, validation, test and prediction leave out the examples where it is ``False``.

    Args:
        num_classes: Number of classes (C), or 1 for regression.
        label_smoothing: Label smoothing of the training loss, in [0, 1). Validation and test losses are not smoothed.
        metrics: Metrics of validation and test. ``None`` means accuracy, macro F1 and Matthews correlation, or for
            regression Pearson and Spearman correlation.
        optimizer: Optimizer settings, see :class:`FineTuningModule`.
    """

    untrained_head = False

    def __init__(
        self,
        *,
        num_classes: int,
        label_smoothing: float = 0.0,
        metrics: Mapping[str, Metric] | None = None,
        **optimizer: Any,
    ) -> None:
        super().__init__(**optimizer)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} is not a fraction; choose 0 <= label_smoothing < 1.")
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        chosen: dict[str, Metric | MetricCollection] = {**(_metrics(num_classes) if metrics is None else metrics)}
        # Compute groups would merge metrics that happen to agree on the first batch.
        collection = MetricCollection(chosen, compute_groups=False)
        # Lightning's mean over processes divides by their mean number of examples, rounded down (2.6.6).
        self.losses = nn.ModuleDict({stage: MeanMetric(nan_strategy=math.nan) for stage in ("val", "test")})
        self.metrics = nn.ModuleDict({stage: collection.clone(prefix=f"{stage}/") for stage in ("val", "test")})

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Return the logits, shape ``(B, C)``."""

    @abstractmethod
    def head(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the head, which are trained with ``head_lr``."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a training batch."""
        outputs, labels = self._outputs(batch), batch["labels"]
        loss = self._losses(outputs, labels, self.label_smoothing).mean()
        self.log("train/loss", loss, batch_size=len(labels), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the metrics with a validation batch."""
        self._update_metrics(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the metrics with a test batch."""
        self._update_metrics(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return probabilities, shape ``(B, C)``, or for regression values, shape ``(B,)``, in float32.

        Examples that do not count are left out.
        """
        outputs = counted_rows(batch, self._outputs(batch))
        return outputs if self.num_classes == 1 else outputs.softmax(-1)

    def _outputs(self, batch: Batch) -> Tensor:
        """Return logits, shape ``(B, C)``, or for regression values, shape ``(B,)``, in float32."""
        logits = self.forward(batch).float()
        return logits.squeeze(-1) if self.num_classes == 1 else logits

    def _losses(self, outputs: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the loss of each example, shape ``(B,)``."""
        if self.num_classes == 1:
            return F.mse_loss(outputs, labels, reduction="none")
        return F.cross_entropy(outputs, labels, label_smoothing=label_smoothing, reduction="none")

    def _update_metrics(self, batch: Batch, stage: str) -> None:
        outputs, labels = counted_rows(batch, self._outputs(batch)), counted_rows(batch, batch["labels"])
        loss, metrics = self.losses[stage], self.metrics[stage]
        assert isinstance(loss, MeanMetric)
        assert isinstance(metrics, MetricCollection)
        if len(labels):  # correlations of no examples would be NaN
            loss.update(self._losses(outputs, labels))
            metrics.update(outputs, labels)
        self.log(f"{stage}/loss", loss, batch_size=len(labels))
        self.log_dict(metrics, batch_size=len(labels), prog_bar=stage == "val")

    def on_train_start(self) -> None:
        """Mark the head as trained, from the first step on."""
        super().on_train_start()
        self.untrained_head = False

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Mark the head as trained, since the checkpoint contains its weights.

        Raises:
            ValueError: The checkpoint was trained on other classes, or on the same classes in another order.
        """
        super().on_load_checkpoint(checkpoint)
        settings = checkpoint.get("hyper_parameters", {})
        saved = settings.get("label_names")
        present = self.hparams.get("label_names")
        if saved is not None and present is not None and list(saved) != list(present):
            place = next((i for i, (a, b) in enumerate(zip(saved, present, strict=False)) if a != b), -1)
            raise ValueError(
                f"the checkpoint was trained on {len(saved)} classes and the data have {len(present)}; the first that"
                f" differs is {saved[place]!r} there and {present[place]!r} here. Give data with the same classes."
            )
        classes = settings.get("num_classes") if saved is None else len(saved)
        if classes not in (None, self.num_classes):
            raise ValueError(
                f"the checkpoint was trained on {classes} classes and this model has {self.num_classes}; give"
                f" num_classes={classes}, and data with these classes."
            )
        self.untrained_head = False

    def on_validation_start(self) -> None:
        """Refuse to evaluate a head with random weights. Lightning's sanity check within a fit is allowed."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._check_head("scores")
        super().on_validation_start()

    def on_test_start(self) -> None:
        """Refuse to evaluate a head with random weights."""
        self._check_head("scores")
        super().on_test_start()

    def on_predict_start(self) -> None:
        """Refuse to predict with a head with random weights."""
        self._check_head("predictions")
        super().on_predict_start()

    def _check_head(self, wanted: str) -> None:
        if self.untrained_head:
            name = type(self.backbone).__name__ if isinstance(self.backbone, nn.Module) else repr(self.backbone)
            raise ValueError(
                f"backbone={name} has no trained head, so {wanted} would be random; "
                "give a checkpoint (ckpt_path) or an exported folder as backbone."
            )


def counted_rows(batch: Batch, values: Tensor) -> Tensor:
    """Return the rows of ``values``, shape ``(B, ...)``, whose examples count according to ``batch["counted"]``."""
    return values[batch["counted"]] if "counted" in batch else values


def resolve_num_classes(num_classes: int | None, names: Sequence[str] | None, least: Literal[1, 2]) -> int | None:
    """Return the number of classes from either setting, or ``None`` if neither is given.

    Args:
        num_classes: Number of classes, or 1 for regression.
        names: Names of the classes.
        least: Smallest allowed number: 1 if regression is possible, else 2.

    Raises:
        ValueError: The settings differ, a name is not a text, or there are too few classes.
    """
    if names is not None and (wrong := [name for name in names if not isinstance(name, str)]):
        raise ValueError(f"label_names={list(names)} has {wrong[0]!r}, which is not a text; put quotes around it.")
    if num_classes is not None and names is not None and len(names) != num_classes:
        raise ValueError(f"num_classes={num_classes} differs from the {len(names)} label_names={list(names)}.")
    classes = num_classes if names is None else len(names)
    if classes is not None and classes < least:
        allowed = "the classes, or 1 for regression" if least == 1 else "at least two classes"
        raise ValueError(f"num_classes={classes} is too small; give {allowed}.")
    return classes


def set_class_names(config: Any, names: Sequence[str] | None) -> None:
    """Set the class names in a config of transformers, if there are any."""
    if names is not None:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}


def _metrics(num_classes: int) -> dict[str, Metric]:
    if num_classes == 1:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Metric `SpearmanCorrcoef` will save all"
            )  # two floats per example
            return {"pearson": PearsonCorrCoef(), "spearman": SpearmanCorrCoef()}
    return {
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "f1": MulticlassF1Score(num_classes, average="macro"),
        "matthews": MulticlassMatthewsCorrCoef(num_classes),
    }
