"""Split a training batch into single samples.

Shapes:  B batch
"""

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor


def split_samples(batch: Any, samples: int) -> list[Any]:
    """Copy the first samples of a batch, each as a batch of one.

    Args:
        batch: Tensors ``(B, ...)``, also in nested dictionaries, lists and tuples. Anything else is kept in each
            sample.
        samples: How many; fewer if the batch has fewer.

    Raises:
        MisconfigurationException: The batch has no tensors, or their B differ.
    """
    sizes = set(_batch_sizes(batch))
    if len(sizes) != 1:
        raise MisconfigurationException(
            f"KernelDrift splits a training batch, whose tensors (B, ...) have"
            f" {f'different B: {sorted(sizes)}' if sizes else 'no B'}; return batches of one size from the data loader."
        )
    return [_sample(batch, number) for number in range(min(samples, *sizes))]


def _batch_sizes(batch: Any) -> Iterator[int]:
    if isinstance(batch, Tensor):
        yield from batch.shape[:1]
    elif isinstance(batch, Mapping | list | tuple):
        for each in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _batch_sizes(each)


def _sample(batch: Any, number: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[number : number + 1].clone() if batch.ndim else batch
    if isinstance(batch, Mapping):
        return {name: _sample(each, number) for name, each in batch.items()}
    if isinstance(batch, list | tuple):
        taken = (_sample(each, number) for each in batch)
        return type(batch)(*taken) if hasattr(batch, "_fields") else type(batch)(taken)  # _fields: a named tuple
    return batch
