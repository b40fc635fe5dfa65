"""What a fit prints if it stops early: its last checkpoint, and the command that resumes it."""

import shlex
import sys
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from slicefine_pl.trainer_callbacks import checkpoint_callbacks


class ResumeHint(Callback):
    """After Ctrl-C or an error during training, print the last checkpoint and the command that resumes from it."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Print the hint, unless no step was trained, or ``PreemptionCheckpoint`` has printed it."""
        if trainer.state.fn != TrainerFn.FITTING or not trainer.is_global_zero or not trainer.global_step:
            return
        if not isinstance(exception, SIGTERMException):
            print(f"\nStopped after {trainer.global_step} steps. {_hint(_last_checkpoint(trainer))}", file=sys.stderr)


def _hint(last: Path | None) -> str:
    if last is None:
        return "No checkpoint was written."
    command = shlex.join(["python", sys.argv[0], "fit", "--ckpt_path", str(last)])
    return f"Last checkpoint: {last}\nTo resume:  {command}"


def _last_checkpoint(trainer: Trainer) -> Path | None:
    """The newest file that this run has written, else the one that it was resumed from."""
    written = [Path(each._last_checkpoint_saved) for each in checkpoint_callbacks(trainer)]
    found = [path for path in written if path.is_file()] or ([Path(trainer.ckpt_path)] if trainer.ckpt_path else [])
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
