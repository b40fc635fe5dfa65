"""How an error in a process that loads data reaches the user: as it was raised.

Answers: what does a loader raise when a worker fails?  torch's own raises another error, often of another type, with
the worker's traceback glued into the message.
"""

import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset, get_worker_info


@dataclass(frozen=True)
class Failure:
    """What a worker hands over instead of a batch.

    Attributes:
        error: What was raised.
        trace: Where, as Python prints it.
    """

    error: Exception
    trace: str


class WholeBatches(Dataset[Any]):
    """Collated batches by lists of indices; in a worker a ``Failure`` stands for one that could not be made.

    Args:
        dataset: Examples by index.
        collate: Makes a batch of a list of examples.
    """

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self._dataset = dataset
        self._collate = collate

    def __getitems__(self, indices: list[int]) -> Any:
        """Return the batch of some examples; torch's loader asks for all of a batch at once."""
        try:
            return self._collate([self._dataset[index] for index in indices])
        except Exception as error:
            if get_worker_info() is None or not _travels(error):
                raise
            return Failure(error, traceback.format_exc())


def as_it_is(batch: Any) -> Any:
    """Return the batch, which is collated already."""
    return batch


def raised(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield batches, and raise the error of a ``Failure``; the worker's traceback is its cause."""
    for batch in batches:
        if isinstance(batch, Failure):
            raise batch.error from RuntimeError(f"in a process that loads data:\n{batch.trace}")
        yield batch


def _travels(error: Exception) -> bool:
    """Whether pickling keeps it; a queue between processes would hang on another one."""
    try:
        return str(pickle.loads(pickle.dumps(error))) == str(error)
    except Exception:
        return False
