"""Base class of the callbacks that change a module for the duration of a fit and resume it exactly."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.hooks import RemovableHandle

from slicefine_pl.callbacks.support.checkpoint_files import use_atomic_files
from slicefine_pl.callbacks.support.cleanup import register_cleanup, unregister_cleanup
from slicefine_pl.callbacks.support.deferred_setup import after_configure_model
from slicefine_pl.callbacks.support.other_callbacks import (
    check_no_model_pruning,
    check_no_search_on_resume,
    move_searches_after,
    replay_epoch_start,
)
from slicefine_pl.callbacks.support.random_state import TrainingRandomState
from slicefine_pl.slicing.optimizer_state import has_types_of, restore_types


class ResumableCallback(Callback, ABC):
    """Change a module at the start of a fit, change it back at the end, and resume the run bit for bit.

    **When.** ``setup("fit")`` checks the trainer and calls :meth:`prepare` as soon as the module's model exists.
    :meth:`release` is called at the end of the fit and after an exception. If Lightning reports neither, it is called
    at the start of the module's next fit.
    **Checkpoint.** Contains :meth:`training_state`, which includes ``"settings"`` and ``"random"``. A checkpoint of
    several processes contains the random state of each. A checkpoint with other settings is refused. It is not the
    callback's ``state_dict``: ``Trainer`` would refuse two callbacks of the class with advice that does not help.

    A subclass implements the abstract methods and calls ``super()`` in the hooks that it extends.

    Attributes:
        random: State of the random generators of training.
        missing: What a checkpoint that was written without this callback lacks, for the error message.
    """

    missing: str

    def __init__(self) -> None:
        self.random = TrainingRandomState()
        self._pl_module: LightningModule | None = None
        self._hooks: list[RemovableHandle] = []
        self._saved_optimizers: list[Mapping[str, Any]] = []
        self._resumed_mid_epoch = False

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the constructor arguments that a resumed run must repeat."""

    @abstractmethod
    def check_trainer(self, trainer: Trainer) -> None:
        """Raise if the trainer's callbacks or its strategy do not work with this callback."""

    @abstractmethod
    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change the module; its model exists, its optimizer does not."""

    @abstractmethod
    def training_state(self) -> dict[str, Any]:
        """Return what a checkpoint contains; empty if there is nothing to resume."""

    @abstractmethod
    def load_training_state(self, state: dict[str, Any]) -> None:
        """Continue from the :meth:`training_state` of a checkpoint; the weights have been restored."""

    def per_rank_sums(self, state: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield the tensors of a state that each process sums on its own, as ``(dictionary, key)``."""
        return iter(())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the trainer, and prepare the module now or after ``configure_model``."""
        use_atomic_files(trainer)
        if stage != "fit":
            return
        self.release()  # an earlier fit, maybe of another module, may have been aborted
        check_no_model_pruning(self, trainer)
        self.check_trainer(trainer)
        move_searches_after(self, trainer)
        self._pl_module = pl_module
        register_cleanup(trainer, pl_module, self, self.release)
        after_configure_model(trainer, pl_module, lambda: self.prepare(trainer, pl_module))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a learning-rate or batch-size search at the start of a resumed run."""
        check_no_search_on_resume(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Change the module back."""
        self.release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Change the module back after a fit without training, as ``Tuner`` runs it."""
        if stage == "fit":
            self.release()

    def release(self) -> None:
        """Remove every change from the module and its optimizers. A second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        if self._pl_module is not None:
            unregister_cleanup(self._pl_module, self)
        self._hooks, self._pl_module = [], None

    def log_metrics(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Send metrics to all loggers, at the step that ``LightningModule.log`` uses."""
        # Private in Lightning, but its own callbacks log at this step; global_step counts every optimizer's steps.
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give optimizer states the dtypes they were saved with."""
        self._restore_dtypes(trainer)
        self._resumed_mid_epoch = trainer.fit_loop.restarted_mid_epoch

    def _restore_dtypes(self, trainer: Trainer) -> None:
        for optimizer, saved in zip(trainer.optimizers, self._saved_optimizers, strict=False):
            restore_types(optimizer, saved)
        self._saved_optimizers = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the random state before the epoch's data iterator is made."""
        loop = trainer.fit_loop
        # The condition of Lightning's fit loop: a first or resumed epoch uses an iterator made before this hook.
        self.random.before_epoch(trainer.current_epoch == 0 or loop.is_resuming or loop.epoch_loop.restarting)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore the random state if validation or data loading may have changed it."""
        if self._resumed_mid_epoch:
            replay_epoch_start(trainer, pl_module)
            self._resumed_mid_epoch = False
        self._restore_dtypes(trainer)  # a search in the middle of a run restores a checkpoint at its end
        self.random.before_batch()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save the random state."""
        self.random.save()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the random state as changed by validation."""
        self.random.mark_changed()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the state, with the random states and sums of all processes."""
        state = self.training_state()
        if not state:
            return
        checkpoint["callbacks"][self.state_key] = state
        if trainer.world_size == 1:
            return
        random_states: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(random_states, self.random.state_dict())
        state["random"] = random_states
        for holder, key in self.per_rank_sums(state):
            total = holder[key].to(trainer.strategy.root_device, copy=True)
            dist.all_reduce(total)
            holder[key] = total.cpu()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Not ``load_state_dict``: Lightning calls this hook after it has restored the weights, and also for a checkpoint
        that contains no state of this callback.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        state = self._checked_state(checkpoint)
        # A run in another precision keeps its own dtypes; FullyShardedStrategy restores dtypes automatically.
        if "state_dict" in checkpoint and has_types_of(pl_module, checkpoint["state_dict"]):
            self._saved_optimizers = checkpoint.get("optimizer_states", [])
        for holder, key in self.per_rank_sums(state) if trainer.global_rank else ():
            holder[key] = torch.zeros_like(holder[key])  # rank 0 keeps the saved total
        self.load_training_state(state)
        random_states = state["random"] if isinstance(state["random"], list) else [state["random"]]
        if len(random_states) == trainer.world_size:
            self.random.load_state_dict(random_states[trainer.global_rank])

    def _checked_state(self, checkpoint: Mapping[str, Any]) -> Any:
        """Return this callback's state in a checkpoint.

        Raises:
            MisconfigurationException: There is no state, or it was saved with other settings.
        """
        new_run = "or start a new run from its weights: load them into the module and pass no ckpt_path."
        state = checkpoint["callbacks"].get(self.state_key)
        if not state:
            raise MisconfigurationException(
                f"The checkpoint was written without {type(self).__name__} and lacks {self.missing}. Resume without"
                f" this callback, {new_run}"
            )
        saved, settings = state["settings"], self.settings()
        changed = [
            f"{name}: saved {saved.get(name)!r}, now {value!r}"
            for name, value in settings.items()
            if saved.get(name) != value
        ]
        if changed:
            raise MisconfigurationException(
                f"The checkpoint was written with other settings ({'; '.join(changed)}). Resume with those, {new_run}"
            )
        return state
