"""The callbacks of a trainer; ``Trainer`` does not declare the attribute."""

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


def trainer_callbacks(trainer: Trainer) -> list[Callback]:
    """Return the callbacks of a trainer in calling order."""
    found: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return found


def checkpoint_callbacks(trainer: Trainer) -> list[ModelCheckpoint]:
    """Return the ``ModelCheckpoint`` callbacks of a trainer."""
    return [each for each in trainer_callbacks(trainer) if isinstance(each, ModelCheckpoint)]
