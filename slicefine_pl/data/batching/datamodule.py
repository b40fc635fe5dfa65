"""A data module whose training loader resumes inside an epoch."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils._pytree import tree_leaves

from slicefine_pl.arguments import check_count, check_seed
from slicefine_pl.data.batching.loaders import PlannedLoader, ResumableLoader
from slicefine_pl.data.batching.plan import BatchPlan


class ResumableDataModule(LightningDataModule):
    """Store the position of the training loader in the data module's part of the checkpoint.

    Lightning 2.6.6 restores the state of a loader only if it makes the loader after it has read the loops' state. A
    module that asks for ``trainer.estimated_stepping_batches`` makes Lightning build the loader earlier, and the state
    is lost without a message.

    A subclass makes its batches with ``plan``, and passes its training loader through ``resumed``.

    Args:
        batch_size: Examples per batch and process.
        seed: Seed of the order of the batches.
        num_workers: Number of worker processes; 0 loads in the training process.
    """

    def __init__(self, batch_size: int = 1, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__()
        check_count("batch_size", batch_size, "examples")
        check_count("num_workers", num_workers, "processes", least=0)
        check_seed(seed)
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self._restored_state: dict[str, int] = {}

    def plan(
        self,
        lengths: Sequence[int],
        *,
        shuffle: bool,
        kind: type[BatchPlan] = BatchPlan,
        batch_size: int | None = None,
    ) -> BatchPlan:
        """Make a plan that shards examples over the trainer's processes.

        Args:
            lengths: Length of each example. All equal if examples have the same size.
            shuffle: Whether every epoch has its own order. Ignored if Lightning overfits on some batches.
            kind: ``EpochPlan`` if examples change with the epoch.
            batch_size: Examples per batch and process; ``None`` means that of the data module.
        """
        return kind(
            lengths,
            batch_size or self.batch_size,
            shuffle=shuffle and not getattr(self.trainer, "overfit_batches", 0) > 0,
            seed=self.seed,
            rank=0 if self.trainer is None else self.trainer.global_rank,
            world_size=1 if self.trainer is None else self.trainer.world_size,
        )

    def resumed(self, loader: ResumableLoader) -> ResumableLoader:
        """Return ``loader``, moved to the position in the checkpoint that is being resumed, if there is one."""
        if self._restored_state:
            loader.load_state_dict(self._restored_state)
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the training loader."""
        loader = None if self.trainer is None else self.trainer.train_dataloader
        return {"train_loader": loader.state_dict()} if isinstance(loader, ResumableLoader) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state for the next training loader."""
        self._restored_state = state_dict.get("train_loader", {})

    def teardown(self, stage: str) -> None:
        """Stop the worker processes, and drop the restored state: the next fit starts from the beginning."""
        trainer = self.trainer
        if trainer is not None:
            used = [trainer.train_dataloader, trainer.val_dataloaders, trainer.test_dataloaders]
            for loader in tree_leaves([*used, trainer.predict_dataloaders]):
                if isinstance(loader, PlannedLoader):
                    loader.close()
        if stage == "fit":
            self._restored_state = {}
