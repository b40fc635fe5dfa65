"""What happens to slices at the optimizer steps of one fit: they are checked, written to their weights, and moved."""

from collections.abc import Mapping

from lightning.pytorch import Callback, Trainer
from torch.optim import Optimizer

from slicefine_pl.callbacks.support.distributed import check_same_on_all_ranks
from slicefine_pl.callbacks.support.optimizer_slices import OptimizerSlices, has_stepped
from slicefine_pl.callbacks.support.optimizer_trial import OptimizerRequirements, prepare_optimizer
from slicefine_pl.callbacks.support.training_checks import TrainingChecks, slices_by_optimizer
from slicefine_pl.slicing import SliceHandle
from slicefine_pl.trainer_callbacks import trainer_callbacks


class SliceSteps:
    """Writes slices after each optimizer step, and moves them after each interval.

    Made in ``on_fit_start``. Steps of a learning-rate or batch-size search, which runs before ``start``, write the
    slices but do not move them.

    Args:
        callback: The callback that opened the slices. A search removes it from the trainer until the search ends.
        trainer: The trainer; its optimizers exist.
        handle: The open slices.
        checks: The checks of this fit.
        intervals: Optimizer steps before an additional first move, and between two moves; ``None`` for no such move.
        requirements: What the slices require of an optimizer.

    Attributes:
        checks: The checks of this fit.
        hooks: The optimizers' hooks, to be removed at the end of the fit.
        moved: Whether slices have moved; the callback resets it after logging.

    Raises:
        MisconfigurationException: The optimizers do not hold, or cannot train, the slices.
    """

    def __init__(
        self,
        callback: Callback,
        trainer: Trainer,
        handle: SliceHandle,
        checks: TrainingChecks,
        intervals: tuple[int | None, int | None],
        requirements: OptimizerRequirements,
    ) -> None:
        self._callback, self._trainer = callback, trainer
        self._handle, self.checks = handle, checks
        self._first_move, self._interval = intervals
        self._keep_state = requirements.keep_state
        self._started = False
        self.moved = False
        by_optimizer = slices_by_optimizer(handle, trainer.optimizers)
        checks.check_parameters()
        self._optimizers = [
            prepare_optimizer(optimizer, slices, requirements)
            for optimizer, slices in zip(trainer.optimizers, by_optimizer, strict=True)
        ]
        self.hooks = [
            each.optimizer.register_step_post_hook(lambda *_, own=each: self._after_step(own))
            for each in self._optimizers
        ]

    def start(self, steps_before: Mapping[int, int]) -> None:
        """Start training.

        Args:
            steps_before: Steps of each optimizer in earlier parts of the run, by its number.
        """
        for number, optimizer in enumerate(self._optimizers):
            optimizer.start(steps_before.get(number, 0))
        self._started = True
        self.check_same_lines()

    def steps(self) -> dict[int, int] | None:
        """Return the steps of each optimizer, with those of earlier parts of the run; ``None`` before ``start``."""
        return {number: each.steps for number, each in enumerate(self._optimizers)} if self._started else None

    def steps_made(self) -> int:
        """Return the steps of all optimizers since ``start``."""
        return sum(each.steps - each.first_step for each in self._optimizers)

    def check_same_lines(self) -> None:
        """Check that all processes train the same lines.

        Raises:
            RuntimeError: They do not.
        """
        places = {view.name: view.indices if view.directions is None else view.directions for view in self._handle}
        check_same_on_all_ranks(self._trainer, places, "trained lines")

    def before_step(self, optimizer: Optimizer) -> None:
        """Check the gradients of an optimizer's slices, right before its step."""
        own = next(each for each in self._optimizers if each.optimizer is optimizer)
        self.checks.before_step(self._trainer, own)

    def _after_step(self, own: OptimizerSlices) -> None:
        if not has_stepped(own.optimizer):
            return
        searching = self._callback not in trainer_callbacks(self._trainer)
        if self._started or searching:
            self.checks.check_gradients(own)  # again, for optimizers that are stepped without Lightning's hooks
        self._handle.write(own.names)
        if searching or not self._started:
            return
        own.steps += 1
        if own.steps == self._first_move or (self._interval is not None and own.steps % self._interval == 0):
            moved = self._handle.move(own.names)
            if not self._keep_state:
                own.reset_state(view.parameter for view in moved)
            self.check_same_lines()
            if self._interval is None:  # the first move was the only one; a resumed run has it in its state
                self._handle.stay(own.names)
            self.moved = True
