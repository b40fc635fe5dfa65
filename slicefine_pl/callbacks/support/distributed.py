"""What a callback needs where several processes train one network: who may shard it, and whether all agree."""

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
    """Refuse strategies that cut weights in ways in which live lines would be read or written wrongly.

    Raises:
        MisconfigurationException: The strategy shards, and is not ours.
    """
    if _shards(trainer) and not isinstance(trainer.strategy, FullyShardedStrategy):
        raise MisconfigurationException(
            f"SliceFineCallback does not work with {type(trainer.strategy).__name__}, which cuts weights where slices"
            " do not find them, or cannot read its own checkpoint while they are open. Use"
            " slicefine_pl.FullyShardedStrategy(), which is FSDP2 with slices (in recipes --trainer.strategy fsdp2), or"
            " 'ddp'."
        )


def check_pruning_strategy(trainer: Trainer) -> None:
    """Refuse strategies that cut weights: masks are made of, and put on, whole ones.

    Raises:
        MisconfigurationException: The strategy shards.
    """
    if _shards(trainer):
        raise MisconfigurationException(
            f"SparsityCallback does not work with {type(trainer.strategy).__name__}: masks need whole weights on every"
            " process. Use strategy='ddp'."
        )


def _shards(trainer: Trainer) -> bool:
    return isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy)


def check_same_on_all_ranks(trainer: Trainer, choices: Mapping[str, Tensor], what: str) -> None:
    """Make sure that every process has chosen the same; all processes call it.

    Args:
        trainer: Its strategy knows the processes.
        choices: What this process has chosen, by the name of a weight.
        what: What is chosen, for the message.

    Raises:
        RuntimeError: A process differs from the first; it and the weight are named.
    """
    if trainer.world_size == 1:
        return
    own = torch.tensor([_digest(chosen) for chosen in choices.values()], device=trainer.strategy.root_device)
    everywhere = own.new_empty(trainer.world_size * len(own))
    dist.all_gather_into_tensor(everywhere, own)
    everywhere = everywhere.view(trainer.world_size, -1)
    apart = (everywhere != everywhere[0]).nonzero().tolist()  # the same on every process, so that all of them stop
    if apart:
        rank, _ = apart[0]
        names = [name for number, name in enumerate(choices) if [rank, number] in apart]
        raise RuntimeError(
            f"Process {rank} has {what} in {shortlist(names)} other than process 0 has. All processes need the same"
            " seed and settings, and the same network; check what differs between them before this callback comes."
        )


def _digest(chosen: Tensor) -> int:
    """Eight bytes that stand for the numbers of a tensor."""
    numbers = chosen.detach().cpu().contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(numbers).digest()[:8], "big", signed=True)
