"""Base class of all modules: optimizer, learning-rate schedule, export, and warnings about random weights.

It contains neither losses nor metrics. Parameters that do not require a gradient when the optimizer is built are not
trained, so callbacks decide what is trained.
"""

import inspect
import math
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from slicefine_pl.modules.export_folder import write_export
from slicefine_pl.modules.keyword_settings import explicit_signature
from slicefine_pl.modules.lr_schedule import LRDecay, ReplannableLR, WarmupDecay
from slicefine_pl.run_length import required_run_length
from slicefine_pl.slicing import SliceFile, apply_slices
from slicefine_pl.slicing.checkpoint import complete_checkpoint


class FineTuningModule(LightningModule):
    """Train with AdamW. The learning rate rises during the warm-up, then falls to zero.

    **Optimizer.** Contains the parameters that require a gradient. The rate changes with every optimizer step.
    **Length.** The schedule needs the number of steps. If it is unknown, the run fails before its first step, except
    with ``decay="constant"`` and ``warmup=0``. The schedule is planned again if an epoch starts with another number of
    batches or another ``lr``, e.g. after a search for them or with reloaded data.
    **Resumption.** The step comes from the checkpoint; rates, weight decay and the number of steps come from this run.
    With the same settings, a resumed run equals an uninterrupted one. With more epochs or another ``lr`` it follows the
    new schedule.
    **Random weights.** A subclass sets ``has_random_weights`` if its backbone has no pretrained weights. Their first
    use raises a warning, unless a checkpoint has replaced them.

    Args:
        lr: Peak learning rate.
        head_lr: Peak learning rate of the head; ``None`` means ``lr``.
        weight_decay: Decoupled weight decay of AdamW.
        warmup: Fraction of all steps over which the rate rises, in [0, 1).
        decay: Shape of the fall after the warm-up.
    """

    backbone: Any
    model: Any
    has_random_weights = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Let ``help()`` show the optimizer settings of the subclass."""
        super().__init_subclass__(**keywords)
        cls.__signature__ = explicit_signature(cls)  # type: ignore[attr-defined]

    def __init__(
        self,
        *,
        lr: float = 1e-4,
        head_lr: float | None = None,
        weight_decay: float = 0.01,
        warmup: float = 0.06,
        decay: LRDecay = "linear",
    ) -> None:
        super().__init__()
        for name, value in {"lr": lr, "head_lr": head_lr, "weight_decay": weight_decay}.items():
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} is not a rate; choose a finite number of at least 0.")
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup={warmup} is not a fraction of the steps; choose 0 <= warmup < 1.")
        if decay not in get_args(LRDecay):
            raise ValueError(f"decay={decay!r} is unknown; choose one of {get_args(LRDecay)}.")
        self.lr = lr
        self.head_lr = head_lr
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.decay = decay

    def head(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the head, which are trained with ``head_lr``. By default there is no head."""
        yield from ()

    def export(self, path: str | Path) -> Path:
        """Write the trained network in the format of its own library. If writing fails, nothing changes.

        Args:
            path: Folder to make. An empty folder or an earlier export is replaced.

        Returns:
            ``path`` as a ``Path``.

        Raises:
            FileExistsError: ``path`` contains other files.
            OSError: The folder cannot be written, e.g. because the disk is full or read-only.
        """
        return write_export(path, self.write_files)

    @classmethod
    def from_slices(cls, path: str | Path, **settings: Any) -> Self:
        """Build the module with which a slice file was trained, with the network that it trained.

        Args:
            path: The slice file, from ``SliceFineCallback.save``.
            settings: Arguments of the module; others come from the file.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: It is damaged, or belongs to another base or other classes.
        """
        module = cls(**(cls.settings_of_slices(path) | settings))
        module.take_slices(path)
        return module

    @classmethod
    def settings_of_slices(cls, path: str | Path) -> dict[str, Any]:
        """The arguments with which the module of a slice file was made.

        Raises:
            FileNotFoundError, ValueError: As in :meth:`from_slices`.
        """
        saved = cls._slice_file(path).extra.get("hyper_parameters", {})
        return {name: value for name, value in saved.items() if name in inspect.signature(cls).parameters}

    def take_slices(self, path: str | Path) -> None:
        """Make the network equal to the one that a slice file was saved from, with the head and the input of training.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: It is damaged, or belongs to another base or other classes. Nothing is changed then.
        """
        file = self._slice_file(path)
        file.check_base(self.model)
        self.on_load_checkpoint(file.extra)
        apply_slices(self.model, file)

    @classmethod
    def _slice_file(cls, path: str | Path) -> SliceFile:
        file = SliceFile.read(path)
        if (trained := file.extra.get("module", cls.__name__)) != cls.__name__:
            raise ValueError(f"slice file {str(path)!r} was trained with {trained}, and this is {cls.__name__}.")
        return file

    @abstractmethod
    def write_files(self, folder: Path) -> None:
        """Write all files of an export into ``folder``, which does not exist yet."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the name of the class, since the settings of the modules are similar."""
        checkpoint["module"] = type(self).__name__.removeprefix("FSDP")  # FSDP changes the class of a sharded module

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build AdamW over the parameters that require a gradient, and its schedule per step.

        Raises:
            ValueError: The schedule depends on the number of steps, and that is unknown.
        """
        head = {id(parameter) for parameter in self.head()}
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        parts = [[each for each in trained if (id(each) in head) == of_head] for of_head in (False, True)]
        peaks = self._peaks()
        groups = [{"params": part, "lr": peak} for part, peak in zip(parts, peaks, strict=True) if part]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay)
        schedule = ReplannableLR(optimizer, self._factor(), [bool(part) for part in parts])
        self._planned = self._plan()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Complete a checkpoint of slices from the pretrained weights, and mark the weights as trained.

        Raises:
            ValueError: The checkpoint contains slices of other weights.
        """
        complete_checkpoint(checkpoint, self)
        self.has_random_weights = False

    def on_train_start(self) -> None:
        """Warn about random weights, and replan the schedule if a search has changed its settings."""
        self.warn_random_weights()
        self._replan()

    def on_validation_start(self) -> None:
        """Warn about random weights, except during a fit, which has warned already."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self.warn_random_weights()

    def on_test_start(self) -> None:
        """Warn about random weights."""
        self.warn_random_weights()

    def on_predict_start(self) -> None:
        """Warn about random weights."""
        self.warn_random_weights()

    def warn_random_weights(self) -> None:
        """Warn once if the weights are random."""
        if self.has_random_weights:
            rank_zero_warn(
                f"backbone={self.backbone!r} has no pretrained weights, so they are random; give trained weights,"
                " unless this is what you want."
            )
            self.has_random_weights = False

    def on_train_epoch_start(self) -> None:
        """Replan the schedule if the data have changed."""
        self._replan()

    def _replan(self) -> None:
        schedule = self.lr_schedulers()  # a search for the learning rate replaces it by its own schedule
        if isinstance(schedule, ReplannableLR) and self._planned != self._plan():
            schedule.replan(self._factor(), self._peaks())
            self._planned = self._plan()

    def _plan(self) -> tuple[float, ...]:
        """Return what the schedule depends on."""
        return self.trainer.num_training_batches, self.trainer.max_steps, *self._peaks()

    def _peaks(self) -> tuple[float, float]:
        """Return the peak rates of the body and of the head."""
        return self.lr, self.lr if self.head_lr is None else self.head_lr

    def _factor(self) -> WarmupDecay:
        wanted = f"decay={self.decay!r}" if self.decay != "constant" else f"warmup={self.warmup}"
        if self.decay == "constant" and self.warmup == 0:
            return WarmupDecay(0, self.warmup, self.decay)
        steps = required_run_length(self.trainer, [wanted], "choose decay='constant' with warmup=0")
        return WarmupDecay(steps, self.warmup, self.decay)
