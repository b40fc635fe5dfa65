"""Which checkpoint of a run is the best."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from slicefine_pl.trainer_callbacks import checkpoint_callbacks

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
    for callback in checkpoint_callbacks(trainer):
        if callback.monitor == ACCURACY:
            callback.monitor = names[0]
    return names[0]


def best_path(trainer: Trainer) -> str:
    """Return the path of the checkpoint with the best metric.

    Args:
        trainer: Trainer whose ``ModelCheckpoint`` callbacks are asked.

    Returns:
        The path; of the latest checkpoint if no metric is monitored; empty if there is no checkpoint.
    """
    paths = [(each.monitor is None, each.best_model_path) for each in checkpoint_callbacks(trainer)]
    # A resumed run may remember a file that was moved or deleted since.
    return min((entry for entry in paths if entry[1] and Path(entry[1]).exists()), default=(True, ""))[1]
