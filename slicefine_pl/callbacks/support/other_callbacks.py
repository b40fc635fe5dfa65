"""How our callbacks deal with the other callbacks of a trainer: conflicts, order, and missing or wrong calls."""

from collections.abc import Iterator

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn

from slicefine_pl.slicing import SliceHandle
from slicefine_pl.slicing.rounding import HALF
from slicefine_pl.strategy import FullyShardedStrategy
from slicefine_pl.trainer_callbacks import checkpoint_callbacks, trainer_callbacks


def check_before_weight_averaging(callback: Callback, trainer: Trainer) -> None:
    """Check that no weight averaging comes before a callback that opens or reads slices.

    Weight averaging copies the module in ``setup``, and must copy one with open slices. At the end of training it
    replaces the slices' values by averages over many positions, so a callback that reads them must come first.

    Raises:
        MisconfigurationException: Weight averaging comes first, or the weights are sharded.
    """
    averaging = (WeightAveraging, StochasticWeightAveraging)
    callbacks = trainer_callbacks(trainer)
    averages = [type(each).__name__ for each in callbacks if isinstance(each, averaging)]
    if averages and isinstance(trainer.strategy, FullyShardedStrategy):
        raise MisconfigurationException(f"{averages[0]} cannot average sharded weights; use strategy='ddp'.")
    for earlier in callbacks[: callbacks.index(callback)]:
        if isinstance(earlier, averaging):
            name = type(callback).__name__
            raise MisconfigurationException(
                f"{type(earlier).__name__} is listed before {name}, which needs the slices as they are trained; put"
                f" {name} first in the list of callbacks."
            )


def check_no_average_of_changes(trainer: Trainer, handle: SliceHandle) -> None:
    """Check that no weight averaging meets slices that layers add to their output.

    Their change is a product, and the product of averages is not the average of products.

    Raises:
        MisconfigurationException: There are both.
    """
    averaging = [each for each in trainer_callbacks(trainer) if isinstance(each, WeightAveraging)]
    names = [view.name for view in handle if view.directions is not None and view.stored.dtype in HALF]
    if averaging and names:
        raise MisconfigurationException(
            f"{type(averaging[0]).__name__} cannot average slices along directions of weights in half precision, such"
            f" as {names[0]}. Keep the weights in float32 (precision='bf16-mixed'), or choose basis='standard'."
        )


def check_no_second(kind: type[Callback], trainer: Trainer) -> None:
    """Check that the trainer has one callback of a kind.

    Raises:
        MisconfigurationException: There are several.
    """
    if len(found := [type(each).__name__ for each in trainer_callbacks(trainer) if isinstance(each, kind)]) > 1:
        raise MisconfigurationException(
            f"The trainer has {len(found)} callbacks of the kind {kind.__name__} ({', '.join(found)}), which would work"
            " on the same weights. Keep one; targets takes a list of patterns."
        )


def check_no_model_pruning(callback: Callback, trainer: Trainer) -> None:
    """Check that there is no ``ModelPruning``, which replaces the parameters that a callback works on.

    Raises:
        MisconfigurationException: There is one.
    """
    reason = (
        "it replaces each weight by weight_orig and weight_mask during the run. To prune, use"
        " slicefine_pl.SparsityCallback, which works alone and with SliceFineCallback."
    )
    _check_absent(ModelPruning, callback, trainer, reason)


def check_no_finetuning(callback: Callback, trainer: Trainer) -> None:
    """Check that there is no ``BackboneFinetuning`` or similar, which also sets ``requires_grad``.

    Raises:
        MisconfigurationException: There is one.
    """
    reason = (
        "both set which parameters require a gradient, and it freezes the slices or unfreezes whole layers. Remove it;"
        f" {type(callback).__name__} trains what targets and also_train match."
    )
    _check_absent(BaseFinetuning, callback, trainer, reason)


def _check_absent(kind: type[Callback], callback: Callback, trainer: Trainer, reason: str) -> None:
    for each in trainer_callbacks(trainer):
        if isinstance(each, kind):
            raise MisconfigurationException(
                f"{type(each).__name__} does not work with {type(callback).__name__}: {reason}"
            )


def move_searches_after(callback: Callback, trainer: Trainer) -> None:
    """Move learning-rate and batch-size searches right behind a callback.

    ``LearningRateFinder`` and ``BatchSizeFinder``, which ``Tuner`` uses too, train in ``on_fit_start``. Lightning puts
    them first, so they would train before the callback has prepared and checked the module.
    """
    callbacks = trainer_callbacks(trainer)
    place = callbacks.index(callback)
    if searches := [each for each in callbacks[:place] if isinstance(each, LearningRateFinder | BatchSizeFinder)]:
        before = [each for each in callbacks[:place] if each not in searches]
        trainer.callbacks = [*before, callback, *searches, *callbacks[place + 1 :]]  # type: ignore[attr-defined]


def check_no_search_on_resume(trainer: Trainer) -> None:
    """Check that a resumed run does not start with a search.

    Lightning restores loops and optimizers after ``on_fit_start``, but a search in that hook drops the checkpoint
    (2.6.6, ``resume_end``).

    Raises:
        MisconfigurationException: It does.
    """
    at_the_start = LearningRateFinder.on_fit_start, BatchSizeFinder.on_fit_start
    for each in trainer_callbacks(trainer) if trainer.ckpt_path is not None else ():
        if type(each).on_fit_start in at_the_start:
            raise MisconfigurationException(
                f"{type(each).__name__} searches at the start of a resumed run, and Lightning then drops the optimizer"
                " state and the step of the checkpoint. Search before the first run, or resume without it."
            )


def replay_epoch_start(trainer: Trainer, pl_module: LightningModule) -> None:
    """Call ``on_train_epoch_start`` of the callbacks that need it, in a run that resumes in the middle of an epoch.

    Lightning does not call the hook then (2.6.6, ``fit_loop.py``). Until the next epoch, gradients would not be
    accumulated, and stochastic weight averaging would use the learning-rate schedule from before it began. Both
    callbacks tolerate a second call in the same epoch.

    Raises:
        MisconfigurationException: The epoch is the one in which weight averaging collects batch statistics; the
            checkpoint lacks what it needs to end that epoch.
    """
    for each in trainer_callbacks(trainer):
        if isinstance(each, StochasticWeightAveraging) and trainer.current_epoch > each.swa_end:
            raise MisconfigurationException(
                f"{type(each).__name__} cannot resume in its last pass, which collects the statistics of batch"
                " normalization. Resume from a checkpoint of the epoch before."
            )
        if isinstance(each, GradientAccumulationScheduler | StochasticWeightAveraging):
            each.on_train_epoch_start(trainer, pl_module)


def reset_best_checkpoints(trainer: Trainer) -> None:
    """Reset each ``ModelCheckpoint`` that monitors a metric, so that the next score is its best."""
    for callback in checkpoint_callbacks(trainer):
        if callback.monitor is not None:
            worst = torch.tensor(torch.inf if callback.mode == "min" else -torch.inf)
            callback.best_k_models, callback.kth_best_model_path, callback.kth_value = {}, "", worst
            callback.best_model_path, callback.best_model_score = "", None


def averaged_models(trainer: Trainer) -> Iterator[nn.Module]:
    """Yield the averaged copies of the module, in which pruned weights must be zero as well."""
    for callback in trainer_callbacks(trainer):
        average = getattr(callback, "_average_model", None)  # Lightning's callbacks have no public name for it
        if isinstance(callback, WeightAveraging) and average is not None:
            yield average.module
        elif isinstance(callback, StochasticWeightAveraging) and average is not None:
            yield average
