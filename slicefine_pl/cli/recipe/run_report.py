"""How far a command came, and what its training cost."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn


class RunReport(Callback):
    """Record what the closing table of a fit shows, and whether an error can still be the user's.

    **Checkpoint.** Contains the seconds of training so far, and the scores of the pretrained network. The table of a
    resumed run equals that of a run that never stopped.

    Attributes:
        scores_before: Scores of the pretrained network, by metric; empty if they were not requested.
        steps: Optimizer steps so far.
        batches: Batches so far, of all kinds.
        checkpoint: Path of the checkpoint that the user gave, if any.
        trainable: Number of parameters that require gradients.
        seconds: Duration of training.
        training_ended: Whether training has ended, so that an error no longer costs its result.
    """

    def __init__(self) -> None:
        self.scores_before: dict[str, float] = {}
        self.steps = 0
        self.batches = 0
        self.checkpoint: str | None = None
        self.trainable = 0
        self.seconds = 0.0
        self.training_ended = False

    def on_train_batch_start(self, *_: Any) -> None:
        """Count the batch: after the first one, an error may be a bug."""
        self.batches += 1

    def on_validation_batch_start(self, *_: Any) -> None:
        """Count the batch."""
        self.batches += 1

    def on_test_batch_start(self, *_: Any) -> None:
        """Count the batch."""
        self.batches += 1

    def on_predict_batch_start(self, *_: Any) -> None:
        """Count the batch."""
        self.batches += 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the trainable parameters, and start the clock."""
        self.trainable = sum(parameter.numel() for parameter in pl_module.parameters() if parameter.requires_grad)
        self._began = time.perf_counter() - self.seconds

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Record the optimizer steps."""
        self.steps = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self._began
        self.training_ended = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save what was measured so far."""
        checkpoint["callbacks"][self.state_key] = {
            "seconds": time.perf_counter() - self._began,
            "trainable": self.trainable,
            "scores_before": self.scores_before,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continue from what the resumed run measured."""
        state = checkpoint["callbacks"].get(self.state_key)
        if state and trainer.state.fn == TrainerFn.FITTING:
            self.seconds, self.trainable = state["seconds"], state["trainable"]
            self.scores_before = dict(state["scores_before"])
