"""What a run does when its machine is wanted by somebody else: save where it stands, on all processes, and end."""

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
from slicefine_pl.callbacks.support.other_callbacks import trainer_callbacks
from slicefine_pl.callbacks.support.resume import ResumableCallback

Handler = Callable[[int, FrameType | None], Any] | int | None


class PreemptionCheckpoint(Callback):
    """On SIGTERM, finish the optimizer step, save ``preempted.ckpt``, and end the run on every process.

    A run that goes on from that file equals one that was never stopped, as from any other checkpoint.  It is enough
    that one process receives the signal.  During a validation the run first finishes that.
    **SLURM.** Lightning saves and requeues a job within its signal handler, where a step may be half done; here it does
    so after the step.
    **Limits.** Comes behind ``SliceFineCallback`` and ``SparsityCallback`` in the list of callbacks.
    **Why not Lightning alone.** Its handler ends the run without a checkpoint, and exchanges a message with the other
    processes from within the handler, where each of them is at another place.

    Args:
        dirpath: Folder of the file; ``None`` takes that of the trainer's first ``ModelCheckpoint``, or its log folder.
    """

    def __init__(self, dirpath: str | Path | None = None) -> None:
        super().__init__()
        self._dirpath = dirpath
        self._lightnings: dict[int, Handler] = {}
        self._received = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make sure that what is saved is what the other callbacks know after the batch, not before it."""
        use_atomic_files(trainer)
        callbacks = trainer_callbacks(trainer)
        later = callbacks[callbacks.index(self) + 1 :]
        if names := [type(each).__name__ for each in later if isinstance(each, ResumableCallback)]:
            raise MisconfigurationException(f"PreemptionCheckpoint stands before {names[0]}; put it behind.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, which has set its handlers by now and takes them back itself."""
        self._received = 0
        if threading.current_thread() is not threading.main_thread():
            return
        environment = getattr(trainer.strategy, "cluster_environment", None)
        signals = [int(signal.SIGTERM)]
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            signals = [int(environment.requeue_signal or signal.SIGUSR1)]
        self._lightnings = {number: signal.signal(number, self._receive) for number in signals}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Act on a signal, wherever it was received."""
        if trainer.fit_loop._should_accumulate():
            return  # gradients of half a step are in no checkpoint
        if not trainer.strategy.reduce_boolean_decision(bool(self._received), all=False):
            return
        number = self._received or next(iter(self._lightnings), int(signal.SIGTERM))
        self._received = 0
        if number != signal.SIGTERM:
            lightnings = self._lightnings[number]
            assert callable(lightnings)
            lightnings(number, None)
            return
        path = self._folder(trainer) / "preempted.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        rank_zero_info(f"Stopped by SIGTERM after {trainer.global_step} steps; go on with ckpt_path={str(path)!r}.")
        raise SIGTERMException

    def _folder(self, trainer: Trainer) -> Path:
        folder = trainer.log_dir or trainer.default_root_dir  # asking for it takes all processes
        savers: list[Any] = getattr(trainer, "checkpoint_callbacks")  # noqa: B009  (Trainer does not declare it)
        places = [each.dirpath for each in savers if getattr(each, "dirpath", None)]
        return Path(self._dirpath or next(iter(places), folder))
