"""Checks for runs of several processes: which strategies are supported, and whether all processes agree."""

import hashlib
from collections.abc import Mapping

import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor

from slicefine_pl.network.names import shortlist
from slicefine_pl.strategy import FullyShardedStrategy


def check_slicing_strategy(trainer: Trainer) -> None:
    """Check that the strategy does not shard weights, or is ``FullyShardedStrategy``.

    Raises:
        MisconfigurationException: It is another strategy that shards.
    """
    if _shards(trainer) and not isinstance(trainer.strategy, FullyShardedStrategy):
        raise MisconfigurationException(
            f"SliceFineCallback does not work with {type(trainer.strategy).__name__}, which shards weights in a way"
            " that slices do not support, or cannot load its own checkpoint while they are open. Use"
            " slicefine_pl.FullyShardedStrategy(), which is FSDP2 with slices (in recipes --trainer.strategy fsdp2), or"
            " 'ddp'."
        )


def check_pruning_strategy(trainer: Trainer) -> None:
    """Check that the strategy does not shard weights.

    Raises:
        MisconfigurationException: It does.
    """
    if _shards(trainer):
        raise MisconfigurationException(
            f"SparsityCallback does not work with {type(trainer.strategy).__name__}: masks need whole weights on every"
            " process. Use strategy='ddp'."
        )


def _shards(trainer: Trainer) -> bool:
    return isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy)


def check_same_on_all_ranks(trainer: Trainer, choices: Mapping[str, Tensor], what: str) -> None:
    """Check that all processes have made the same choices. All processes must call it.

    Args:
        trainer: The trainer; its strategy communicates.
        choices: Choices of this process, by the name of a weight.
        what: What is chosen, for the message.

    Raises:
        RuntimeError: A process differs from rank 0; the message names it and the weights.
    """
    if trainer.world_size == 1:
        return
    own = torch.tensor([_digest(chosen) for chosen in choices.values()], device=trainer.strategy.root_device)
    everywhere = own.new_empty(trainer.world_size * len(own))
    dist.all_gather_into_tensor(everywhere, own)
    everywhere = everywhere.view(trainer.world_size, -1)
    different = (everywhere != everywhere[0]).nonzero().tolist()  # equal on every process, so that all of them raise
    if different:
        rank, _ = different[0]
        names = [name for number, name in enumerate(choices) if [rank, number] in different]
        raise RuntimeError(
            f"Process {rank} and process 0 have different {what} in {shortlist(names)}. All processes need the same"
            " seed, settings and network; check what differs between them before this callback runs."
        )


def _digest(chosen: Tensor) -> int:
    """Return eight bytes of a tensor's hash, as an integer."""
    numbers = chosen.detach().cpu().contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(numbers).digest()[:8], "big", signed=True)
