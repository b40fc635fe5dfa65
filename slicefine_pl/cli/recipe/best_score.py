"""Which score chooses the best checkpoint of a regression, whose recipe names the accuracy of classes."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

ACCURACY = "val/accuracy"


def follow_score(trainer: Trainer, module: LightningModule) -> str | None:
    """Let the checkpoints with the best accuracy be those with the best first score, where there is no accuracy.

    Lightning would miss the accuracy only after the first epoch, and end the run.

    Args:
        trainer: Before its fit.
        module: With the metrics that it logs in ``module.metrics["val"]``, or without.

    Returns:
        The name of that score; ``None`` where nothing had to change.
    """
    metrics: Any = getattr(module, "metrics", None)
    scores = [ACCURACY] if metrics is None else list(metrics["val"].keys())
    if ACCURACY in scores:
        return None
    for saver in getattr(trainer, "checkpoint_callbacks"):  # noqa: B009  (Trainer does not declare it)
        if isinstance(saver, ModelCheckpoint) and saver.monitor == ACCURACY:
            saver.monitor = scores[0]
    return scores[0]
