"""What else stands in a trainer's list of callbacks, and who must come before whom."""

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging

from slicefine_pl.strategy import FullyShardedStrategy


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The callbacks of a trainer, in the order in which they are called; ``Trainer`` does not declare them."""
    found: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return found


def check_order(callback: Callback, trainer: Trainer) -> None:
    """Weight averaging must come later than a callback that reads slices.

    It copies the module in ``setup``, and must copy the one that has slices; at the end of training it puts averages in
    the places of the slices, which by then have been at many.
    """
    averaging = (WeightAveraging, StochasticWeightAveraging)
    callbacks = callbacks_of(trainer)
    averages = [type(each).__name__ for each in callbacks if isinstance(each, averaging)]
    if averages and isinstance(trainer.strategy, FullyShardedStrategy):
        raise MisconfigurationException(f"{averages[0]} cannot average weights that are sharded; use strategy='ddp'.")
    for earlier in callbacks[: callbacks.index(callback)]:
        if isinstance(earlier, averaging):
            name = type(callback).__name__
            raise MisconfigurationException(
                f"{type(earlier).__name__} stands before {name}, which must see the slices as they are trained; put"
                f" {name} before it in the list of callbacks."
            )
