"""What a callback needs so that a run that stops and resumes equals one that never stopped."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer

from slicefine_pl.callbacks.support.checkpoint_files import use_atomic_files
from slicefine_pl.callbacks.support.other_callbacks import replay_epoch_start
from slicefine_pl.callbacks.support.random_state import TrainingRandomState
from slicefine_pl.slicing.optimizer_state import has_types_of, restore_types


class ResumableCallback(Callback):
    """Keeps the random numbers of training, and takes a checkpoint only if it was written with the same settings.

    A subclass saves ``random`` in its own state, beside its ``settings``, and extends these hooks.
    """

    def __init__(self) -> None:
        self.random = TrainingRandomState()
        self._saved_optimizers: list[Mapping[str, Any]] = []
        self._resumed_mid_epoch = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_types(trainer)
        self._resumed_mid_epoch = trainer.fit_loop.restarted_mid_epoch

    def _restore_types(self, trainer: Trainer) -> None:
        for optimizer, saved in zip(trainer.optimizers, self._saved_optimizers, strict=False):
            restore_types(optimizer, saved)
        self._saved_optimizers = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have what a run goes on from written in a way that a crash cannot destroy."""
        use_atomic_files(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loop = trainer.fit_loop
        # As Lightning decides it: a first or resumed epoch goes on with the iterator made before this hook.
        self.random.before_epoch(trainer.current_epoch == 0 or loop.is_resuming or loop.epoch_loop.restarting)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._resumed_mid_epoch:
            replay_epoch_start(trainer, pl_module)
            self._resumed_mid_epoch = False
        self._restore_types(trainer)  # a search in the middle of a run takes its steps back by a checkpoint
        self.random.before_batch()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.random.remember()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.random.expect_detour()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what all processes know; ``state_dict`` holds what this one does."""
        state = checkpoint["callbacks"].get(self.state_key)
        if trainer.world_size == 1 or not state:
            return
        everywhere: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(everywhere, self.random.state_dict())
        state["random"] = everywhere
        for holder, name in self.local_sums(state):
            total = holder[name].to(trainer.strategy.root_device, copy=True)
            dist.all_reduce(total)
            holder[name] = total.cpu()

    def local_sums(self, state: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
        """Where a state holds tensors that count on only when those of all processes are added up."""
        return iter(())

    def resume_random(self, trainer: Trainer, saved: Any) -> None:
        """Go on with this process's random numbers, where as many processes have saved theirs."""
        everywhere = saved if isinstance(saved, list) else [saved]
        if len(everywhere) == trainer.world_size:
            self.random.load_state_dict(everywhere[trainer.global_rank])

    def expect_optimizers(self, pl_module: LightningModule, checkpoint: Mapping[str, Any]) -> None:
        """Remember the optimizers' states, which Lightning loads later, so that they keep the types of the saved ones.

        A run that goes on in another precision takes its own; ``FullyShardedStrategy`` has seen to the states already.
        """
        if "state_dict" in checkpoint and has_types_of(pl_module, checkpoint["state_dict"]):
            self._saved_optimizers = checkpoint.get("optimizer_states", [])

    def share_sums(self, trainer: Trainer, state: dict[str, Any]) -> None:
        """Leave what was added up over all processes to the first, so that their sum is what was saved."""
        for holder, name in self.local_sums(state) if trainer.global_rank else ():
            holder[name] = torch.zeros_like(holder[name])

    def saved_state(self, checkpoint: Mapping[str, Any], settings: Mapping[str, Any], consequence: str) -> Any:
        """This callback's state in a checkpoint that a fit goes on from.

        Args:
            checkpoint: As Lightning hands it to ``on_load_checkpoint``.
            settings: Those of now.
            consequence: What a checkpoint lacks that knows nothing of this callback.

        Raises:
            MisconfigurationException: There is no state, or it was saved with other settings.
        """
        afresh = "or start a new run from its weights: load them into the module and give no ckpt_path."
        state = checkpoint["callbacks"].get(self.state_key)
        if not state:
            raise MisconfigurationException(
                f"The checkpoint was written without {type(self).__name__}, so {consequence}. Resume without this"
                f" callback, {afresh}"
            )
        saved = state["settings"]
        changed = [name for name, value in settings.items() if saved.get(name) != value]
        if changed:
            told = "; ".join(f"{name}: saved {saved.get(name)!r}, now {settings[name]!r}" for name in changed)
            raise MisconfigurationException(
                f"The checkpoint was written with other settings ({told}). Resume with those, {afresh}"
            )
        return state
