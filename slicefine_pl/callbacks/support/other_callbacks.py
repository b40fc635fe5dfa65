"""What else stands in a trainer's list of callbacks: who cannot be there, who must come first, what others need."""

from collections.abc import Iterator

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn

from slicefine_pl.strategy import FullyShardedStrategy


def trainer_callbacks(trainer: Trainer) -> list[Callback]:
    """The callbacks of a trainer, in the order in which they are called; ``Trainer`` does not declare them."""
    found: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return found


def check_before_weight_averaging(callback: Callback, trainer: Trainer) -> None:
    """Weight averaging must come later than a callback that reads slices.

    It copies the module in ``setup``, and must copy the one that has slices; at the end of training it puts averages in
    the places of the slices, which by then have been at many.
    """
    averaging = (WeightAveraging, StochasticWeightAveraging)
    callbacks = trainer_callbacks(trainer)
    averages = [type(each).__name__ for each in callbacks if isinstance(each, averaging)]
    if averages and isinstance(trainer.strategy, FullyShardedStrategy):
        raise MisconfigurationException(f"{averages[0]} cannot average weights that are sharded; use strategy='ddp'.")
    for earlier in callbacks[: callbacks.index(callback)]:
        if isinstance(earlier, averaging):
            name = type(callback).__name__
            raise MisconfigurationException(
                f"{type(earlier).__name__} stands before {name}, which must see the slices as they are trained; put"
                f" {name} before it in the list of callbacks."
            )


def check_no_second(callback: Callback, kind: type[Callback], trainer: Trainer) -> None:
    """There must be no second callback of a kind.

    Lightning itself refuses two that have the same class; subclasses, and those appended later, it does not.
    """
    if len(found := [type(each).__name__ for each in trainer_callbacks(trainer) if isinstance(each, kind)]) > 1:
        raise MisconfigurationException(
            f"The trainer has {len(found)} callbacks of the kind {kind.__name__} ({', '.join(found)}), and each would"
            " take the same weights. Keep one; targets takes a list of patterns."
        )


def check_no_model_pruning(callback: Callback, trainer: Trainer) -> None:
    """Lightning's ``ModelPruning`` puts other parameters into the place of those that a callback works on."""
    for each in trainer_callbacks(trainer):
        if isinstance(each, ModelPruning):
            raise MisconfigurationException(
                f"{type(each).__name__} does not work with {type(callback).__name__}: it replaces each weight by"
                " weight_orig and weight_mask in the middle of the run. To prune, use"
                " slicefine_pl.SparsityCallback, which works alone and with SliceFineCallback."
            )


def check_no_finetuning(callback: Callback, trainer: Trainer) -> None:
    """``BackboneFinetuning`` and its kind decide, like a callback that slices, what requires a gradient."""
    for each in trainer_callbacks(trainer):
        if isinstance(each, BaseFinetuning):
            name = type(callback).__name__
            raise MisconfigurationException(
                f"{type(each).__name__} does not work with {name}: both set which parameters require a gradient, and it"
                f" freezes the slices or unfreezes whole layers. Take it out; {name} trains what its targets and"
                " also_train name."
            )


def move_searches_after(callback: Callback, trainer: Trainer) -> None:
    """Have searches come right behind a callback.

    ``LearningRateFinder`` and ``BatchSizeFinder``, which ``Tuner`` uses, train in ``on_fit_start``.  Lightning calls
    them first, before the callback has prepared and checked what is trained.
    """
    callbacks = trainer_callbacks(trainer)
    place = callbacks.index(callback)
    if searches := [each for each in callbacks[:place] if isinstance(each, LearningRateFinder | BatchSizeFinder)]:
        before = [each for each in callbacks[:place] if each not in searches]
        trainer.callbacks = [*before, callback, *searches, *callbacks[place + 1 :]]  # type: ignore[attr-defined]


def check_no_search_on_resume(trainer: Trainer) -> None:
    """After a search at the start of a run that resumes, Lightning has forgotten the checkpoint's loops and optimizers.

    In ``on_fit_start`` they are still to be restored, but the search takes the checkpoint away (2.6.6, ``resume_end``).
    """
    at_the_start = LearningRateFinder.on_fit_start, BatchSizeFinder.on_fit_start
    for each in trainer_callbacks(trainer) if trainer.ckpt_path is not None else ():
        if type(each).on_fit_start in at_the_start:
            raise MisconfigurationException(
                f"{type(each).__name__} searches at the start of a run that resumes, and Lightning then forgets the"
                " optimizer's state and the step of the checkpoint. Search before the first run, or resume without it."
            )


def replay_epoch_start(trainer: Trainer, pl_module: LightningModule) -> None:
    """Have callbacks do what they do when an epoch starts, in a run that resumes in the middle of one.

    Lightning does not call ``on_train_epoch_start`` then (2.6.6, ``fit_loop.py``): until the next epoch, gradients
    would not be accumulated, and stochastic weight averaging would keep the schedule from before it began.  Called
    twice in an epoch, these two do the same as once.

    Raises:
        MisconfigurationException: The epoch is the one in which weight averaging collects the statistics of batches;
            Lightning has forgotten what it needs to end it.
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
    """Have each ``ModelCheckpoint`` that monitors a score take the next one for the best so far."""
    for callback in trainer_callbacks(trainer):
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            worst = torch.tensor(torch.inf if callback.mode == "min" else -torch.inf)
            callback.best_k_models, callback.kth_best_model_path, callback.kth_value = {}, "", worst
            callback.best_model_path, callback.best_model_score = "", None


def averaged_models(trainer: Trainer) -> Iterator[nn.Module]:
    """Copies of the module that weight averaging keeps: a weight that is pruned now must be zero there too."""
    for callback in trainer_callbacks(trainer):
        average = getattr(callback, "_average_model", None)
        if isinstance(callback, WeightAveraging) and average is not None:
            yield average.module
        elif isinstance(callback, StochasticWeightAveraging) and average is not None:
            yield average
