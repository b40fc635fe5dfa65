"""What all modules share: the optimizer, its schedule, how a resumed run goes on with them, and the export.

Knows neither losses nor metrics.  What does not require a gradient when the optimizer is built is simply not trained.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from slicefine_pl.modules.export_folder import write_export
from slicefine_pl.run_length import required_run_length

LRDecay = Literal["linear", "cosine", "constant"]


class FineTuningModule(LightningModule):
    """Train with AdamW and a rate that rises over the first ``warmup`` of all steps and then falls to zero.

    **Optimizer.** Over the parameters that require a gradient; the rate changes with every optimizer step.
    **Length.** The schedule needs the number of steps: if it is unknown, the run ends with an error before its first
    step.  ``decay="constant"`` with ``warmup=0`` does not need it.  If an epoch starts with another number of batches,
    or another ``lr``, than planned (after a search for them, or with reloaded data), the schedule is planned again.
    **Resumption.** Takes the step from the checkpoint, and rates, weight decay and total steps from this run: with the
    same settings it goes on as if never stopped, with more epochs or another ``lr`` it follows the new schedule.
    **Random weights.** A subclass whose backbone brings no weights sets ``has_random_weights``. The first use of them
    raises a warning, unless a checkpoint has replaced them before.

    Args:
        lr: Peak learning rate.
        head_lr: Peak learning rate of the head; ``None`` means ``lr``.
        weight_decay: Decoupled weight decay of AdamW.
        warmup: Share of all steps over which the rate rises, in [0, 1).
        decay: Shape of the fall after the warm-up.
    """

    backbone: Any
    has_random_weights = False

    def __init__(self, *, lr: float, head_lr: float | None, weight_decay: float, warmup: float, decay: LRDecay) -> None:
        super().__init__()
        for name, value in {"lr": lr, "head_lr": head_lr, "weight_decay": weight_decay}.items():
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} is no rate; choose a finite number of at least 0.")
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup={warmup} is no share of the steps; choose 0 <= warmup < 1.")
        if decay not in get_args(LRDecay):
            raise ValueError(f"decay={decay!r} is unknown; choose one of {get_args(LRDecay)}.")
        self.lr = lr
        self.head_lr = head_lr
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.decay = decay

    def head(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the head, which learn with ``head_lr``; none where nothing is new."""
        yield from ()

    def export(self, path: str | Path) -> Path:
        """Write the trained network, as its own library loads it, or nothing at all.

        Args:
            path: Folder to make; an empty folder or an earlier export is replaced.

        Returns:
            The folder.

        Raises:
            FileExistsError: ``path`` holds something else.
            OSError: It cannot be written, as the disk is full or the place is read-only.
        """
        return write_export(path, self.write_files)

    @abstractmethod
    def write_files(self, folder: Path) -> None:
        """Write all files of an export into ``folder``, which does not exist yet."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which module wrote it, as the settings of modules look alike."""
        checkpoint["module"] = type(self).__name__.removeprefix("FSDP")  # which a sharded module's class is given

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build AdamW over what requires a gradient, and its schedule per step.

        Raises:
            ValueError: The schedule depends on the number of steps, and that is unknown.
        """
        head = {id(parameter) for parameter in self.head()}
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        parts = [[each for each in trained if (id(each) in head) == of_head] for of_head in (False, True)]
        peaks = self._peaks()
        groups = [{"params": part, "lr": peak} for part, peak in zip(parts, peaks, strict=True) if part]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay)
        schedule = _Schedule(optimizer, self._factor(), [bool(part) for part in parts])
        self._planned = self._plan()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Count the weights as trained."""
        self.has_random_weights = False

    def on_train_start(self) -> None:
        """Warn of random weights; plan the schedule again if a search has changed what it was planned for."""
        self.warn_random_weights()
        self._plan_again()

    def on_validation_start(self) -> None:
        """Warn of random weights, except within a fit, which does so itself."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self.warn_random_weights()

    def on_test_start(self) -> None:
        """Warn of random weights."""
        self.warn_random_weights()

    def on_predict_start(self) -> None:
        """Warn of random weights."""
        self.warn_random_weights()

    def warn_random_weights(self) -> None:
        """Warn once that the weights are random numbers, if they are."""
        if self.has_random_weights:
            rank_zero_warn(
                f"backbone={self.backbone!r} brings no weights, so they are random numbers; give trained weights,"
                " unless this is what you want."
            )
            self.has_random_weights = False

    def on_train_epoch_start(self) -> None:
        """Plan the schedule again if the epoch has other data than it was planned for."""
        self._plan_again()

    def _plan_again(self) -> None:
        schedule = self.lr_schedulers()
        if isinstance(schedule, _Schedule) and self._planned != self._plan():  # a search puts its own schedule there
            schedule.follow(self._factor(), self._peaks())
            self._planned = self._plan()

    def _plan(self) -> tuple[float, ...]:
        """What the schedule depends on."""
        return self.trainer.num_training_batches, self.trainer.max_steps, *self._peaks()

    def _peaks(self) -> tuple[float, float]:
        """Peak rates of the body and of the head."""
        return self.lr, self.lr if self.head_lr is None else self.head_lr

    def _factor(self) -> "_Factor":
        wanted = f"decay={self.decay!r}" if self.decay != "constant" else f"warmup={self.warmup}"
        if self.decay == "constant" and self.warmup == 0:
            return _Factor(0, self.warmup, self.decay)
        steps = required_run_length(self.trainer, wanted, "choose decay='constant' with warmup=0")
        return _Factor(steps, self.warmup, self.decay)


class _Schedule(LambdaLR):
    """A schedule that takes from a checkpoint the step it stands at, and nothing else.

    ``LambdaLR`` restores the old peak, and the attributes of a callable object with the old total; the optimizer's
    state holds the old rates too, and is restored before this one.
    """

    def __init__(self, optimizer: Optimizer, factor: "_Factor", present: list[bool]) -> None:
        super().__init__(optimizer, factor)
        self._present = present  # of the body and the head, which have groups
        self._settings = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]

    def follow(self, factor: "_Factor", peaks: tuple[float, ...]) -> None:
        """Go on with another factor and other peak rates, from the step where the schedule stands."""
        self.base_lrs = [peak for peak, present in zip(peaks, self._present, strict=True) if present]
        self.lr_lambdas = [factor for _ in self.base_lrs]
        self._set_rates()

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        for group, settings in zip(self.optimizer.param_groups, self._settings, strict=True):
            group.update(settings)
        self._set_rates()

    def _set_rates(self) -> None:
        pairs = zip(self.base_lrs, self.lr_lambdas, strict=True)
        self._last_lr = [peak * factor(self.last_epoch) for peak, factor in pairs]  # get_lr() warns outside of step()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


class _Factor:
    """Factor on the peak learning rate at each step: up to 1 over the warm-up, then down to 0."""

    def __init__(self, steps: int, warmup: float, decay: str) -> None:
        self.rise = math.ceil(steps * warmup)
        self.fall = steps - self.rise
        self.decay = decay

    def __call__(self, step: int) -> float:
        if step < self.rise:
            return (step + 1) / (self.rise + 1)
        if self.decay == "constant":
            return 1.0
        done = min(1.0, (step - self.rise) / max(1.0, self.fall))
        return 1 - done if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
