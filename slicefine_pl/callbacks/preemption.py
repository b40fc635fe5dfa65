"""Save a run on all processes when its machine is preempted, and end it."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from slicefine_pl.callbacks.support.checkpoint_files import use_atomic_files
from slicefine_pl.callbacks.support.resume import ResumableCallback
from slicefine_pl.trainer_callbacks import checkpoint_callbacks, trainer_callbacks

SignalHandler = Callable[[int, FrameType | None], Any] | int | None


class PreemptionCheckpoint(Callback):
    """On SIGTERM, finish the optimizer step, save ``preempted.ckpt``, and end the run on every process.

    **When.** ``on_train_batch_end``, after the optimizer step that is running when the signal arrives. During a
    validation, the run finishes the validation first. One process that receives the signal is enough.
    **Checkpoint.** A run that resumes from the file equals an uninterrupted run, as from any other checkpoint.
    **SLURM.** Lightning's signal handler saves and requeues a job at once, maybe in the middle of a step. Here it runs
    after the step.
    **Why not Lightning's handler for SIGTERM.** It ends the run without a checkpoint. It also communicates with the
    other processes from the handler, while each of them is at another point of its step.
    **Limits.** Must come after ``SliceFineCallback`` and ``SparsityCallback`` in the list of callbacks.

    Args:
        dirpath: Folder of the file; ``None`` uses that of the trainer's first ``ModelCheckpoint``, or its log folder.
    """

    def __init__(self, dirpath: str | Path | None = None) -> None:
        super().__init__()
        self._dirpath = dirpath
        self._replaced: dict[int, SignalHandler] = {}  # Lightning's handlers, by signal
        self._received = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the other callbacks have finished a batch when this one saves.

        Raises:
            MisconfigurationException: A callback that resumes comes later in the list.
        """
        use_atomic_files(trainer)
        callbacks = trainer_callbacks(trainer)
        later = callbacks[callbacks.index(self) + 1 :]
        if names := [type(each).__name__ for each in later if isinstance(each, ResumableCallback)]:
            raise MisconfigurationException(
                f"PreemptionCheckpoint is listed before {names[0]}; put it after {names[0]}."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the signal handlers of Lightning, which restores its own at the end of the run."""
        self._received = 0
        if threading.current_thread() is not threading.main_thread():
            return
        environment = getattr(trainer.strategy, "cluster_environment", None)
        signals = [int(signal.SIGTERM)]
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            signals = [int(environment.requeue_signal or signal.SIGUSR1)]
        self._replaced = {number: signal.signal(number, self._receive) for number in signals}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and end the run, if any process has received a signal.

        Raises:
            SIGTERMException: The checkpoint is saved; Lightning ends the run.
        """
        # Checkpoints do not contain accumulated gradients; Lightning has no public name for this question.
        if trainer.fit_loop._should_accumulate():
            return
        if not trainer.strategy.reduce_boolean_decision(bool(self._received), all=False):
            return
        number = self._received or next(iter(self._replaced), int(signal.SIGTERM))
        self._received = 0
        if number != signal.SIGTERM:
            requeue = self._replaced[number]
            assert callable(requeue)
            requeue(number, None)
            return
        path = self._folder(trainer) / "preempted.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        rank_zero_info(f"Stopped by SIGTERM after {trainer.global_step} steps; resume with ckpt_path={str(path)!r}.")
        raise SIGTERMException

    def _folder(self, trainer: Trainer) -> Path:
        log_dir = trainer.log_dir or trainer.default_root_dir  # log_dir is a collective call: all processes read it
        folders = [each.dirpath for each in checkpoint_callbacks(trainer) if each.dirpath]
        return Path(self._dirpath or next(iter(folders), log_dir))
