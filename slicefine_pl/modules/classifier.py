"""The step, the metrics and the optimizer that all classifiers share.

A subclass brings a network; this class brings the training of it.  Knows neither slices nor masks: what does not
require a gradient when the optimizer is built is simply not trained.

Shapes:  B batch · C classes (1 for regression)
"""

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric, MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassMatthewsCorrCoef

Batch = Mapping[str, Tensor]


class Classifier(LightningModule):
    """Train a network that maps a batch to logits, shape ``(B, C)``; with C = 1 it is a regression.

    **Logs.** ``train/loss``; at the end of an epoch ``val/loss`` and ``test/loss`` with accuracy, macro F1 and Matthews
    correlation (classification), or Pearson and Spearman correlation (regression).
    **Optimizer.** AdamW over the parameters that require a gradient; the rate rises over the first ``warmup`` of all
    steps and then falls to zero, per optimizer step.
    **Resumption.** Takes the step from the checkpoint, and rates, weight decay and total steps from this run: with the
    same settings it goes on as if never stopped, with more epochs or another ``lr`` it follows the new schedule.

    Args:
        num_classes: Classes, or 1 for regression.
        lr: Peak learning rate.
        head_lr: Peak learning rate of the head; ``None`` means ``lr``.
        weight_decay: Decoupled weight decay of AdamW.
        warmup: Share of all steps over which the rate rises, in [0, 1).
        decay: Shape of the fall after the warm-up.
        label_smoothing: Share of the target that all classes share in the training loss, in [0, 1); validation and test
            losses are plain cross entropies.
        metrics: What validation and test count; ``None`` takes accuracy, macro F1 and Matthews correlation, or for
            regression Pearson and Spearman correlation.
    """

    backbone: Any
    untrained_head = False

    def __init__(
        self,
        *,
        num_classes: int,
        lr: float,
        head_lr: float | None,
        weight_decay: float,
        warmup: float,
        decay: Literal["linear", "cosine", "constant"],
        label_smoothing: float = 0.0,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup={warmup} is no share of the steps; choose 0 <= warmup < 1.")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} is no share; choose 0 <= label_smoothing < 1.")
        self.num_classes = num_classes
        self.lr = lr
        self.head_lr = lr if head_lr is None else head_lr
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.decay = decay
        self.label_smoothing = label_smoothing
        counted = MetricCollection(dict(_metrics(num_classes) if metrics is None else metrics))
        self.metrics = nn.ModuleDict({stage: counted.clone(prefix=f"{stage}/") for stage in ("val", "test")})

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Return the logits, shape ``(B, C)``."""

    @abstractmethod
    def head(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the head, which learn with ``head_lr``."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a training batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a validation batch."""
        self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a test batch."""
        self._step(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return probabilities, shape ``(B, C)``, or for regression the values, shape ``(B,)``; always float32."""
        logits = self.forward(batch).float()
        return logits.squeeze(-1) if self.num_classes == 1 else logits.softmax(-1)

    def _step(self, batch: Batch, stage: str) -> Tensor:
        logits, labels = self.forward(batch).float(), batch["labels"]
        if self.num_classes == 1:
            outputs = logits.squeeze(-1)
            loss = F.mse_loss(outputs, labels)
        else:
            outputs = logits
            smoothing = self.label_smoothing if stage == "train" else 0.0
            loss = F.cross_entropy(outputs, labels, label_smoothing=smoothing)
        self.log(f"{stage}/loss", loss, batch_size=len(labels), prog_bar=stage == "train", sync_dist=stage != "train")
        if stage != "train":
            metrics = self.metrics[stage]
            assert isinstance(metrics, MetricCollection)
            metrics.update(outputs.detach(), labels)
            self.log_dict(metrics, batch_size=len(labels), prog_bar=stage == "val")
        return loss

    def on_train_start(self) -> None:
        """Count the head as trained from the first step on."""
        self.untrained_head = False

    def on_load_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Count the head as trained: the checkpoint brings its weights."""
        self.untrained_head = False

    def on_predict_start(self) -> None:
        """Refuse to predict with a head of random weights."""
        if self.untrained_head:
            raise ValueError(
                f"backbone={self.backbone!r} has no trained head, so predictions would be random; "
                "give a checkpoint (ckpt_path) or an exported folder as backbone."
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build AdamW over what requires a gradient, and its schedule per step."""
        head = {id(parameter) for parameter in self.head()}
        groups: list[dict[str, Any]] = [{"params": [], "lr": self.lr}, {"params": [], "lr": self.head_lr}]
        for parameter in (p for p in self.parameters() if p.requires_grad):
            groups[id(parameter) in head]["params"].append(parameter)
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay)
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps) and self.decay != "constant":
            raise ValueError(
                f"decay={self.decay!r} needs a known number of steps; set max_epochs or max_steps, or decay='constant'."
            )
        schedule = _Schedule(optimizer, _Factor(steps, self.warmup, self.decay))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Schedule(LambdaLR):
    """A schedule that takes from a checkpoint the step it stands at, and nothing else.

    ``LambdaLR`` restores the old peak, and the attributes of a callable object with the old total; the optimizer's
    state holds the old rates too, and is restored before this one.
    """

    def __init__(self, optimizer: Optimizer, factor: "_Factor") -> None:
        super().__init__(optimizer, factor)
        self._settings = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        for group, settings in zip(self.optimizer.param_groups, self._settings, strict=True):
            group.update(settings)
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


class _Factor:
    """Factor on the peak learning rate at each step: up to 1 over the warm-up, then down to 0."""

    def __init__(self, steps: float, warmup: float, decay: str) -> None:
        self.rise = math.ceil(steps * warmup) if math.isfinite(steps) else 0
        self.fall = steps - self.rise
        self.decay = decay

    def __call__(self, step: int) -> float:
        if step < self.rise:
            return (step + 1) / (self.rise + 1)
        if self.decay == "constant":
            return 1.0
        done = min(1.0, (step - self.rise) / max(1.0, self.fall))
        return 1 - done if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2


def check_num_classes(num_classes: int) -> None:
    """Refuse a number of classes that is none, before a network is loaded for it."""
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} is too small; give the classes, or 1 for regression.")


def _metrics(num_classes: int) -> dict[str, Metric]:
    if num_classes == 1:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Metric `SpearmanCorrcoef` will save all")  # two floats per text
            return {"pearson": PearsonCorrCoef(), "spearman": SpearmanCorrCoef()}
    return {
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "f1": MulticlassF1Score(num_classes, average="macro"),
        "matthews": MulticlassMatthewsCorrCoef(num_classes),
    }
