"""Count the optimizer steps of a run.

Lightning's ``estimated_stepping_batches`` returns -1 or infinity if the number is unknown, and ignores the accumulation
of a ``GradientAccumulationScheduler``.
"""

import math
from collections.abc import Sequence

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer

from slicefine_pl.trainer_callbacks import trainer_callbacks


def run_length(trainer: Trainer) -> int | None:
    """Return the optimizer steps of a whole fit, including those made before a resume.

    May make the trainer build its training loader. A run that is stopped (``max_time``, early stopping) makes fewer
    steps. Later epochs are assumed to be as long as the current one, which may be wrong if loaders are reloaded.

    Returns:
        The number of steps; ``None`` if it is unknown until the run ends.
    """
    return None if _why_unknown(trainer) else _count(trainer)


def required_run_length(trainer: Trainer, wanted: Sequence[str], instead: str) -> int:
    """Return the optimizer steps of a whole fit, for a setting that depends on them.

    Args:
        trainer: See :func:`run_length`.
        wanted: The settings and their values, for the message.
        instead: Settings that do not depend on the number of steps, for the message.

    Raises:
        ValueError: The number of steps is unknown until the run ends.
    """
    if unknown := _why_unknown(trainer):
        cause, remedy = unknown
        depend = f"{' and '.join(wanted)} depend{'s' if len(wanted) == 1 else ''}"
        raise ValueError(
            f"{depend} on the number of optimizer steps of the run, which is unknown: {cause}. {remedy}, or {instead}."
        )
    return _count(trainer)


def _why_unknown(trainer: Trainer) -> tuple[str, str] | None:
    """Return why the length is unknown, and what makes it known; ``None`` if it is known."""
    if trainer.max_steps != -1:
        manual = not trainer.lightning_module.automatic_optimization
        if manual and len(trainer.optimizers) > 1:
            cause = f"max_steps={trainer.max_steps} counts the steps of {len(trainer.optimizers)} optimizers together"
            return cause, "Set max_epochs without max_steps"
        return None
    if trainer.max_epochs == -1:
        timed = any(isinstance(each, Timer) for each in trainer_callbacks(trainer))
        cause = "only max_time limits the run" if timed else "neither max_epochs nor max_steps limits the run"
        return cause, "Set max_epochs or max_steps"
    if math.isinf(_batches(trainer)):
        cause = "the training data have no length (an IterableDataset without __len__), and max_steps is not set"
        return cause, "Set limit_train_batches to a number of batches per epoch, or set max_steps"
    return None


def _count(trainer: Trainer) -> int:
    """Return the steps before the current epoch plus those of the remaining epochs; at most ``max_steps``."""
    if trainer.max_epochs in (None, -1) or math.isinf(batches := _batches(trainer)):
        return trainer.max_steps
    assert trainer.max_epochs is not None
    current = trainer.current_epoch
    steps = trainer.global_step - _steps_of_current_epoch(trainer, batches)
    steps += _steps_of_epochs(trainer, batches, range(current, trainer.max_epochs))
    return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)


def _steps_of_current_epoch(trainer: Trainer, batches: float) -> int:
    """Return the steps already made in the epoch in which a resumed run continues."""
    loop, current = trainer.fit_loop.epoch_loop, trainer.current_epoch
    if not loop.restarting or trainer.fit_loop.epoch_progress.current.ready == current:
        return 0  # not resumed, or from a checkpoint of the last batch of an epoch
    started, accumulated = loop.batch_progress.current.ready, _accumulated(trainer, current)
    return math.ceil(batches / accumulated) if started >= batches else started // accumulated


def _steps_of_epochs(trainer: Trainer, batches: float, epochs: range) -> int:
    """Return the steps of a range of epochs; the last batch of each completes a step."""
    if not any(isinstance(each, GradientAccumulationScheduler) for each in trainer_callbacks(trainer)):
        return len(epochs) * math.ceil(batches / trainer.accumulate_grad_batches)
    return sum(math.ceil(batches / _accumulated(trainer, epoch)) for epoch in epochs)


def _accumulated(trainer: Trainer, epoch: int) -> int:
    """Return the number of batches per optimizer step in an epoch."""
    for each in trainer_callbacks(trainer):
        if isinstance(each, GradientAccumulationScheduler):
            return each.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches


def _batches(trainer: Trainer) -> float:
    """Return the batches of an epoch; infinite if the data have no length and no limit."""
    if trainer.limit_train_batches == 0:
        return 0  # Lightning does not build a loader then, and the number stays infinite
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    return trainer.num_training_batches
