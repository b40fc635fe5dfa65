"""Which examples form which batch.

A plan answers one question: which examples does rank r see in batch k of epoch e? The answer depends only on the
lengths of the examples, the seed, the epoch and the rank. So it is the same in any process and after a restart, and no
global random state can change it.

Lightning's ``DistributedSampler`` gives each rank single examples. A plan forms batches of similar length first and
shards each batch, so that all ranks have the same number of batches of the same size, with little padding.
"""

from collections.abc import Sequence
from itertools import cycle, islice

import torch

BUCKET = 50  # batches whose examples are sorted by length together: little padding, much randomness


class BatchPlan:
    """Batches of examples of similar length, in a new order each epoch.

    Every rank gets the same number of batches, and batches of the same size. Missing examples are filled up with copies
    of the first examples of the epoch, as in ``DistributedSampler``.

    Args:
        lengths: Length of each example, e.g. in tokens. All equal if examples have the same size.
        batch_size: Examples per batch and rank.
        shuffle: Whether every epoch has its own order. Otherwise batches run from long to short examples.
        seed: Seed of the order.
        rank: Rank of this process, in ``[0, world_size)``.
        world_size: Number of processes that share the examples.
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
        """Set the epoch. Lightning calls this before each one."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of batches per epoch and rank."""
        return -(-len(self.lengths) // (self.batch_size * self.world_size))

    def batches(self) -> list[list[int]]:
        """Return the indices of each batch of this epoch, for this rank."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist() if self.shuffle else self._by_length()
        global_batch_size = self.batch_size * self.world_size
        if self.shuffle:
            order = [
                index for bucket in _chunks(order, BUCKET * global_batch_size) for index in self._by_length(bucket)
            ]
        global_batches = _chunks(order, global_batch_size)
        for last in global_batches[-1:]:  # the only one that the ranks may not be able to share equally
            last += list(islice(cycle(order), -len(last) % self.world_size))  # with few examples, some are copied often
        if self.shuffle:
            places = torch.randperm(len(global_batches), generator=generator).tolist()
            global_batches = [global_batches[place] for place in places]
        return [batch[self.rank :: self.world_size] for batch in global_batches]

    @property
    def ends_with_copy(self) -> bool:
        """Whether the last example of this rank's last batch is a copy. Only for plans without shuffling."""
        return 0 < len(self.lengths) % self.world_size <= self.rank

    def _by_length(self, indices: Sequence[int] | None = None) -> list[int]:
        return sorted(range(len(self.lengths)) if indices is None else indices, key=lambda index: -self.lengths[index])


class EpochPlan(BatchPlan):
    """A plan whose indices contain the epoch: ``epoch * examples + index``.

    A dataset whose examples change with the epoch, e.g. by random crops, takes the epoch from the index. Persistent
    workers could not learn it otherwise.
    """

    def batches(self) -> list[list[int]]:
        """Return the indices of each batch of this epoch, for this rank."""
        offset = self.epoch * len(self.lengths)
        return [[offset + index for index in batch] for batch in super().batches()]


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
