"""Which checkpoint of a run is the best."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

ACCURACY = "val/accuracy"  # what recipes monitor


def monitor_first_metric(trainer: Trainer, module: LightningModule) -> str | None:
    """Monitor the module's first metric instead of the accuracy, if the module has no accuracy.

    Lightning would notice the missing accuracy only after the first epoch, and stop.

    Args:
        trainer: Trainer whose checkpoint callbacks may monitor the accuracy.
        module: Module with its metrics in ``module.metrics["val"]``, or without metrics.

    Returns:
        Name of the metric; ``None`` if nothing was changed.
    """
    metrics: Any = getattr(module, "metrics", None)
    names = [ACCURACY] if metrics is None else list(metrics["val"].keys())
    if ACCURACY in names:
        return None
    for callback in getattr(trainer, "checkpoint_callbacks"):  # noqa: B009  (Trainer does not declare it)
        if isinstance(callback, ModelCheckpoint) and callback.monitor == ACCURACY:
            callback.monitor = names[0]
    return names[0]


def best_path(checkpoints: Sequence[Callback]) -> str:
    """Return the path of the checkpoint with the best metric.

    Args:
        checkpoints: Checkpoint callbacks of a trainer.

    Returns:
        The path; of the latest checkpoint if no metric is monitored; empty if there is no checkpoint.
    """
    paths = [(getattr(each, "monitor", None) is None, getattr(each, "best_model_path", "")) for each in checkpoints]
    # A resumed run may remember a file that was moved or deleted since.
    return min((entry for entry in paths if entry[1] and Path(entry[1]).exists()), default=(True, ""))[1]
