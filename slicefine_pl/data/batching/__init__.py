"""Which examples form which batch, and loaders that resume inside an epoch.

A :class:`BatchPlan` computes the batches of an epoch from the seed, the epoch and the rank alone. A
:class:`ResumableLoader` loads them and remembers how many it has returned. A :class:`ResumableDataModule` stores that
number in the checkpoint. So a run that stops and resumes sees the same batches as one that was never stopped.
"""

from slicefine_pl.data.batching.datamodule import ResumableDataModule
from slicefine_pl.data.batching.loaders import PlannedLoader, ResumableLoader
from slicefine_pl.data.batching.plan import BatchPlan, EpochPlan

__all__ = ["BatchPlan", "EpochPlan", "PlannedLoader", "ResumableDataModule", "ResumableLoader"]
