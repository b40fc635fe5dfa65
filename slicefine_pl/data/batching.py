"""Which examples form which batch, and loaders that stop and resume anywhere.

Answers: which examples does rank r see at batch k of epoch e?  A pure function of (lengths, seed, epoch, rank), so that
no global random state and no order of events can change it.  Knows nothing of text.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

from slicefine_pl.data.workers import WholeBatches, as_it_is, raised

BUCKET = 50  # batches whose examples are sorted together: little padding, much randomness


class BatchPlan:
    """Batches of examples of like length, reshuffled each epoch, in equal number and size on every rank.

    What is missing for equal shares is filled up with copies of the first examples of the epoch, as DistributedSampler
    does.

    Args:
        lengths: Length of each example, in tokens.
        batch_size: Examples per batch and rank.
        shuffle: Whether every epoch has its own order; otherwise batches run from long to short.
        seed: Of the order.
        rank: This process, in [0, world_size).
        world_size: Processes that share the examples.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is too small; choose at least 1.")
        self.lengths = lengths
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each one."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches per epoch and rank."""
        return -(-len(self.lengths) // (self.batch_size * self.world_size))

    def batches(self) -> list[list[int]]:
        """The indices of each batch of this epoch, for this rank."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist() if self.shuffle else self._by_length()
        step = self.batch_size * self.world_size
        if self.shuffle:
            order = [index for bucket in _chunks(order, BUCKET * step) for index in self._by_length(bucket)]
        everywhere = _chunks(order, step)
        for last in everywhere[-1:]:  # the only one that the ranks may not be able to share equally
            last += list(islice(cycle(order), -len(last) % self.world_size))  # a few examples may fill several ranks
        if self.shuffle:
            everywhere = [everywhere[place] for place in torch.randperm(len(everywhere), generator=generator).tolist()]
        return [batch[self.rank :: self.world_size] for batch in everywhere]

    @property
    def ends_with_copy(self) -> bool:
        """Whether the last example of this rank's last batch is a copy; for a plan that does not shuffle."""
        return 0 < len(self.lengths) % self.world_size <= self.rank

    def _by_length(self, indices: Sequence[int] | None = None) -> list[int]:
        return sorted(range(len(self.lengths)) if indices is None else indices, key=lambda index: -self.lengths[index])


class EpochPlan(BatchPlan):
    """A plan whose indices carry their epoch, ``epoch * examples + index``, so that persistent workers know it too."""

    def batches(self) -> list[list[int]]:
        """The indices of each batch of this epoch, for this rank."""
        offset = self.epoch * len(self.lengths)
        return [[offset + index for index in batch] for batch in super().batches()]


class PlannedLoader:
    """Load the batches of a plan, all of them at each iteration.

    Not a ``DataLoader``, so Lightning leaves the batches as the plan shards them.  An error in a process that loads is
    raised as it was there.

    **Copies.** Without shuffling, a batch with a copy that fills it up has the key ``counted``, bool of shape ``(B,)``:
    scores leave out the examples where it is ``False``.

    Args:
        dataset: Examples by index.
        plan: Which of them form a batch.
        collate: Makes a batch of a list of examples.
        num_workers: Processes that load ahead, and live as long as the loader; 0 loads in this process.
    """

    def __init__(
        self, dataset: Dataset[Any], plan: BatchPlan, collate: Callable[[list[Any]], Any], num_workers: int = 0
    ) -> None:
        self._rest = _Rest(plan)
        self._batches = WholeBatches(dataset, collate)
        self._num_workers = num_workers
        self._loader: DataLoader[Any] | None = None
        self.plan = plan

    def __len__(self) -> int:
        """Batches per epoch and rank."""
        return len(self.plan)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of the plan's epoch."""
        marks_copy = not self.plan.shuffle and self.plan.ends_with_copy
        for number, batch in enumerate(self._load(first=0), 1):
            yield _without_last(batch) if marks_copy and number == len(self) else batch

    def close(self) -> None:
        """End the processes that load; a later iteration starts new ones.

        Left to the garbage collector, which may take their queues away first, they would be waited for in vain for five
        seconds each.
        """
        self._loader = None

    def _load(self, first: int) -> Iterator[Any]:
        """Yield the batches from number ``first`` on; the epoch counts at the first of them, not at the call."""
        self._rest.first = first
        if self._loader is None:
            self._loader = DataLoader(
                self._batches,
                batch_sampler=self._rest,
                collate_fn=as_it_is,
                num_workers=self._num_workers,
                persistent_workers=self._num_workers > 0,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # else each iteration draws from the global generator, and dropout changes
            )
        try:
            yield from raised(self._loader)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise RuntimeError(
                f"a process that loads data died ({error}); if memory ran out, lower num_workers="
                f"{self._num_workers} or batch_size={self.plan.batch_size}."
            ) from error


class _Rest:
    """The batches of a plan from number ``first`` on, asked for anew each epoch: so workers may live on."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan
        self.first = 0

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.plan.batches()[self.first :])


class ResumableLoader(PlannedLoader):
    """Load the batches of a plan, and go on after a restart where the run stopped.

    **State.** The epoch, and how many of its batches were handed out; what workers loaded ahead does not count.
    **Epochs.** A new epoch begins when ``set_epoch`` names another one, or after the last batch.  Within one epoch a
    second iterator goes on where the first one stopped.
    """

    def __init__(
        self, dataset: Dataset[Any], plan: BatchPlan, collate: Callable[[list[Any]], Any], num_workers: int = 0
    ) -> None:
        super().__init__(dataset, plan, collate, num_workers)
        self.sampler = plan  # the name under which Lightning looks for set_epoch
        self._epoch = plan.epoch
        self._given = 0

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches that the plan's epoch still holds."""
        if self._epoch != self.plan.epoch:  # a generator: Lightning asks for it before it sets the epoch
            self._epoch, self._given = self.plan.epoch, 0
        for batch in self._load(first=self._given):
            self._given += 1
            yield batch
        self._given = 0

    def state_dict(self) -> dict[str, int]:
        """Return where the loader stands, and the settings that decide what its batches are."""
        return {"epoch": self._epoch, "given": self._given, **self._settings()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on where the state was taken.

        Raises:
            ValueError: The state stands inside an epoch of other batches.
        """
        saved = {name: state_dict[name] for name in ("examples", "batch_size", "seed", "world_size")}
        total = -(-saved["examples"] // (saved["batch_size"] * saved["world_size"]))
        changed = {name: (saved[name], now) for name, now in self._settings().items() if saved[name] != now}
        together = self.plan.batch_size * self.plan.world_size
        if not {"examples", "seed"} & changed.keys() and saved["batch_size"] * saved["world_size"] == together:
            changed = {}  # other shares of the same batches
        if changed and 0 < state_dict["given"] < total:
            differences = ", ".join(f"{name}={old} (now {now})" for name, (old, now) in changed.items())
            raise ValueError(
                f"the checkpoint stopped after {state_dict['given']} of {total} batches of an epoch with "
                f"{differences}; resume with the same values (on another number of processes with the same batch_size "
                "x world_size), or from a checkpoint taken at the end of an epoch."
            )
        self._epoch = state_dict["epoch"]
        self._given = len(self) if state_dict["given"] >= total else state_dict["given"]
        self.plan.set_epoch(self._epoch)

    def _settings(self) -> dict[str, int]:
        plan = self.plan
        return {
            "examples": len(plan.lengths),
            "batch_size": plan.batch_size,
            "seed": plan.seed,
            "world_size": plan.world_size,
        }


class ResumableDataModule(LightningDataModule):
    """Carry the state of the training loader in the data module's part of the checkpoint.

    Lightning restores a loader's own state only where it makes the loader after it read the loops' state; a module that
    asks for ``estimated_stepping_batches`` has it made before, and the state is lost (seen in Lightning 2.6.6).
    A subclass makes its batches by ``plan``, and passes its training loader through ``resumed``.

    Args:
        batch_size: Examples per batch and process.
        seed: Of the order of the batches.
        num_workers: Processes that load ahead; 0 loads in this one.
    """

    def __init__(self, batch_size: int = 1, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is too small; choose at least 1.")
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers} is too small; choose 0 to load in this process, or more.")
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self._pending: dict[str, int] = {}

    def plan(
        self,
        lengths: Sequence[int],
        *,
        shuffle: bool,
        kind: type[BatchPlan] = BatchPlan,
        batch_size: int | None = None,
    ) -> BatchPlan:
        """Share examples out over the trainer's processes.

        Args:
            lengths: Of each example, in tokens; all equal where examples are of one size.
            shuffle: Whether every epoch has its own order; not where Lightning overfits on the same batches.
            kind: ``EpochPlan`` where what an example shows depends on the epoch.
            batch_size: Examples per batch and process; ``None`` takes the module's.
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
        """Return ``loader``, moved to where the checkpoint that is being resumed stopped."""
        if self._pending:
            loader.load_state_dict(self._pending)
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the loader that the trainer uses."""
        loader = None if self.trainer is None else self.trainer.train_dataloader
        return {"train_loader": loader.state_dict()} if isinstance(loader, ResumableLoader) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state for the next training loader."""
        self._pending = state_dict.get("train_loader", {})

    def teardown(self, stage: str) -> None:
        """End the processes that load, and forget the state: the next fit starts anew."""
        trainer = self.trainer
        if trainer is not None:
            used = [trainer.train_dataloader, trainer.val_dataloaders, trainer.test_dataloaders]
            for loader in tree_leaves([*used, trainer.predict_dataloaders]):
                if isinstance(loader, PlannedLoader):
                    loader.close()
        if stage == "fit":
            self._pending = {}


def _without_last(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch whose last example does not count."""
    first = next(iter(batch.values()))
    counted = torch.as_tensor(batch.get("counted", [True] * len(first))).clone()
    counted[-1] = False
    return {**batch, "counted": counted}


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
