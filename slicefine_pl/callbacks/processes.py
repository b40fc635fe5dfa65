"""What a callback needs where several processes train one network: who may shard it, and whether all agree."""

import hashlib
from collections.abc import Mapping

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor

from slicefine_pl.slicing.targets import some
from slicefine_pl.strategy import FullyShardedStrategy


def check_strategy(trainer: Trainer, who: str) -> None:
    """Refuse strategies that cut weights in ways in which live lines would be read or written wrongly.

    Raises:
        MisconfigurationException: The strategy shards, and is not ours.
    """
    strategy = trainer.strategy
    foreign = isinstance(strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy)
    if foreign and not isinstance(strategy, FullyShardedStrategy):
        raise MisconfigurationException(
            f"{who} does not work with {type(strategy).__name__}, which cuts weights where slices do not find them (or"
            " cannot read its own checkpoint while they are open). Use slicefine_pl.FullyShardedStrategy(), FSDP2 with"
            " slices, or 'ddp'."
        )


def check_agreement(trainer: Trainer, choices: Mapping[str, Tensor], what: str) -> None:
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
    everywhere = trainer.strategy.all_gather(own).view(trainer.world_size, -1)
    apart = (everywhere != everywhere[0]).nonzero().tolist()  # the same on every process, so that all of them stop
    if apart:
        rank, _ = apart[0]
        names = [name for number, name in enumerate(choices) if [rank, number] in apart]
        raise RuntimeError(
            f"Process {rank} has {what} in {some(names)} other than process 0 has. All processes need the same seed and"
            " settings, and the same network; check what differs between them before this callback comes."
        )


def _digest(chosen: Tensor) -> int:
    """Eight bytes that stand for the numbers of a tensor."""
    numbers = chosen.detach().cpu().contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(numbers).digest()[:8], "big", signed=True)
