"""Checkpoints without the frozen base: ``SliceFineCallback(checkpoint="slices")``."""

from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging

from slicefine_pl.callbacks.support.resume import ResumableCallback
from slicefine_pl.slicing import SliceHandle, SliceView
from slicefine_pl.slicing.base_lines import BaseLines
from slicefine_pl.slicing.checkpoint import complete_checkpoint, shrink_checkpoint
from slicefine_pl.strategy import FullyShardedStrategy
from slicefine_pl.trainer_callbacks import trainer_callbacks


def check_can_save_slices(callback: Callback, trainer: Trainer) -> None:
    """Check that slices and the base make the module, so that a checkpoint may omit the base.

    Raises:
        MisconfigurationException: Another callback changes all weights or keeps an average of them, or a checkpoint is
            a folder of shards.
    """
    whole = "use checkpoint='model', which saves all weights."
    for each in trainer_callbacks(trainer):
        name = type(each).__name__
        if isinstance(each, ResumableCallback) and each is not callback:
            raise MisconfigurationException(f"checkpoint='slices' does not work with {name}, which prunes; {whole}")
        if isinstance(each, WeightAveraging | StochasticWeightAveraging):
            raise MisconfigurationException(
                f"checkpoint='slices' does not work with {name}, whose average contains all weights; {whole}"
            )
    if isinstance(trainer.strategy, FullyShardedStrategy) and trainer.strategy.saves_shards:
        raise MisconfigurationException(
            "checkpoint='slices' does not work with FullyShardedStrategy(save_distributed_checkpoint=True), which"
            " writes the shards of all weights; leave that argument out."
        )


def check_has_weights(pl_module: LightningModule) -> None:
    """Check that a module has the weights from which its training starts.

    Raises:
        MisconfigurationException: It has none yet.
    """
    if empty := [name for name, parameter in pl_module.named_parameters() if parameter.is_meta]:
        raise MisconfigurationException(
            f"checkpoint='slices' needs the weights from which training starts, and {empty[0]} has none yet (device"
            " 'meta'); load them before the fit, or use checkpoint='model'."
        )


def keep_base(handle: SliceHandle, pl_module: LightningModule, continued: bool) -> None:
    """Keep what slices overwrite, so that the module can load a checkpoint of slices while or after it is trained.

    Args:
        handle: The open slices.
        pl_module: The module.
        continued: Whether the module was trained by an earlier fit of the same run.
    """
    base = BaseLines.of(pl_module) if continued else None
    listener = _BaseKeeper(handle, base or BaseLines.attach(pl_module))
    listener.after_move(list(handle))
    handle.add_move_listener(listener)


class _BaseKeeper:
    """Reads the lines at which slices arrive, before they are trained."""

    def __init__(self, handle: SliceHandle, base: BaseLines) -> None:
        self._handle, self._base = handle, base

    def before_move(self, slices: Sequence[SliceView]) -> None:
        """Nothing to do."""

    def after_move(self, slices: Sequence[SliceView]) -> None:
        """Keep the lines."""
        self._base.add(self._handle.stored_lines([view.name for view in slices]))


def save_slices(trainer: Trainer, pl_module: LightningModule, handle: SliceHandle, checkpoint: dict[str, Any]) -> None:
    """Leave the frozen base out of a checkpoint. All processes call it.

    Raises:
        MisconfigurationException: The base has changed.
    """
    if not trainer.is_global_zero and not isinstance(trainer.strategy, FullyShardedStrategy):
        return  # only the first process writes
    try:
        shrink_checkpoint(checkpoint, pl_module, handle.snapshot())
    except ValueError as error:
        raise MisconfigurationException(f"checkpoint='slices': {error} Use checkpoint='model'.") from None


def complete_at_load(trainer: Trainer) -> None:
    """Complete checkpoints of slices when the trainer loads them, before any hook sees them."""
    strategy = trainer.strategy
    if "load_checkpoint" in strategy.__dict__:
        return
    load = strategy.load_checkpoint

    def load_completed(*args: Any, **settings: Any) -> dict[str, Any]:
        checkpoint = load(*args, **settings)
        complete_checkpoint(checkpoint, trainer.lightning_module)
        return checkpoint

    strategy.__dict__["load_checkpoint"] = load_completed  # Lightning has no hook of callbacks that is early enough
