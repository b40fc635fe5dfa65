"""Loaders of the batches of a plan, which can stop and resume anywhere.

``torchdata.StatefulDataLoader`` is not used. It resumes bit for bit and costs nothing extra, but it replaces only the
counter in :class:`ResumableLoader`; docs/experiments/resuming-loaders.md has the measurements.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from slicefine_pl.data.batching.plan import BatchPlan
from slicefine_pl.data.batching.workers import BatchDataset, identity, raise_failures


class PlannedLoader:
    """Load all batches of a plan, at each iteration.

    The class is not a ``DataLoader``, so Lightning does not replace its sampler. An error in a worker process is raised
    with its own type and message.

    **Copies.** Without shuffling, a batch that contains a copy has the key ``counted``, bool of shape ``(B,)``. It is
    ``False`` for the copy, and metrics leave the copy out.

    Args:
        dataset: Map-style dataset.
        plan: Which examples form a batch.
        collate: Makes a batch from a list of examples.
        num_workers: Number of worker processes. They live as long as the loader. 0 loads in this process.
    """

    def __init__(
        self, dataset: Dataset[Any], plan: BatchPlan, collate: Callable[[list[Any]], Any], num_workers: int = 0
    ) -> None:
        self._sampler = _PlanSampler(plan)
        self._batches = BatchDataset(dataset, collate)
        self._num_workers = num_workers
        self._loader: DataLoader[Any] | None = None
        self.plan = plan

    def __len__(self) -> int:
        """Number of batches per epoch and rank."""
        return len(self.plan)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of the plan's epoch."""
        marks_copy = not self.plan.shuffle and self.plan.ends_with_copy
        for number, batch in enumerate(self._load(first=0), 1):
            yield _mark_last_as_copy(batch) if marks_copy and number == len(self) else batch

    def close(self) -> None:
        """Stop the worker processes. A later iteration starts new ones.

        If the garbage collector did this, it might collect the queues first, and then wait five seconds per worker.
        """
        self._loader = None

    def _load(self, first: int) -> Iterator[Any]:
        """Yield the batches from number ``first`` on. The epoch is read when the first one is requested."""
        self._sampler.first = first
        if self._loader is None:
            self._loader = DataLoader(
                self._batches,
                batch_sampler=self._sampler,
                collate_fn=identity,
                num_workers=self._num_workers,
                persistent_workers=self._num_workers > 0,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # otherwise each iteration draws from the global generator
            )
        try:
            yield from raise_failures(self._loader)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise RuntimeError(
                f"a process that loads data died ({error}); if memory ran out, lower num_workers="
                f"{self._num_workers} or batch_size={self.plan.batch_size}."
            ) from error


class _PlanSampler:
    """Batch sampler of a plan, from batch ``first`` on. ``DataLoader`` iterates it once per epoch."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan
        self.first = 0

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.plan.batches()[self.first :])


class ResumableLoader(PlannedLoader):
    """Load the batches of a plan, and continue after a restart with the next batch.

    **State.** The epoch, and how many of its batches were returned. Batches that workers loaded ahead do not count.
    **Epochs.** A new epoch starts when ``set_epoch`` sets another number, or after the last batch. A second iterator
    within one epoch continues where the first one stopped.
    """

    def __init__(
        self, dataset: Dataset[Any], plan: BatchPlan, collate: Callable[[list[Any]], Any], num_workers: int = 0
    ) -> None:
        super().__init__(dataset, plan, collate, num_workers)
        self.sampler = plan  # Lightning calls set_epoch on an attribute of this name
        self._epoch = plan.epoch
        self._returned = 0

    def __iter__(self) -> Iterator[Any]:
        """Yield the remaining batches of the plan's epoch."""
        if self._epoch != self.plan.epoch:  # a generator: Lightning makes the iterator before it sets the epoch
            self._epoch, self._returned = self.plan.epoch, 0
        for batch in self._load(first=self._returned):
            self._returned += 1
            yield batch
        self._returned = 0

    def state_dict(self) -> dict[str, int]:
        """Return the position in the data, and the settings that determine the batches."""
        return {"epoch": self._epoch, "returned": self._returned, **self._settings()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue from a saved position.

        Raises:
            ValueError: The position is inside an epoch whose batches were made with other settings.
        """
        saved = {name: state_dict[name] for name in ("examples", "batch_size", "seed", "world_size")}
        total = -(-saved["examples"] // (saved["batch_size"] * saved["world_size"]))
        changed = {name: (saved[name], now) for name, now in self._settings().items() if saved[name] != now}
        global_batch_size = self.plan.batch_size * self.plan.world_size
        if not {"examples", "seed"} & changed.keys() and saved["batch_size"] * saved["world_size"] == global_batch_size:
            changed = {}  # the same batches, sharded over another number of processes
        if changed and 0 < state_dict["returned"] < total:
            differences = ", ".join(f"{name}={old} (now {now})" for name, (old, now) in changed.items())
            raise ValueError(
                f"the checkpoint stopped after {state_dict['returned']} of {total} batches of an epoch with "
                f"{differences}; resume with the same values (on another number of processes with the same batch_size "
                "x world_size), or from a checkpoint taken at the end of an epoch."
            )
        self._epoch = state_dict["epoch"]
        self._returned = len(self) if state_dict["returned"] >= total else state_dict["returned"]
        self.plan.set_epoch(self._epoch)

    def _settings(self) -> dict[str, int]:
        plan = self.plan
        return {
            "examples": len(plan.lengths),
            "batch_size": plan.batch_size,
            "seed": plan.seed,
            "world_size": plan.world_size,
        }


def _mark_last_as_copy(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the batch with ``counted`` set to ``False`` for its last example."""
    first = next(iter(batch.values()))
    counted = torch.as_tensor(batch.get("counted", [True] * len(first))).clone()
    counted[-1] = False
    return {**batch, "counted": counted}
