"""Errors in worker processes reach the user with their own type and message.

``DataLoader`` raises another error, often of another type, with the traceback of the worker inside its message. Here a
worker returns the error instead of a batch, and the main process raises it.
"""

import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset, get_worker_info


@dataclass(frozen=True)
class WorkerFailure:
    """What a worker returns instead of a batch.

    Attributes:
        error: The exception that was raised.
        trace: Its traceback, as text.
    """

    error: Exception
    trace: str


class BatchDataset(Dataset[Any]):
    """Collated batches by lists of indices. In a worker process, errors are returned as ``WorkerFailure``.

    Args:
        dataset: Map-style dataset of examples.
        collate: Makes a batch from a list of examples.
    """

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self._dataset = dataset
        self._collate = collate

    def __getitems__(self, indices: list[int]) -> Any:
        """Return the batch of some examples. ``DataLoader`` calls this once per batch, if a dataset has it."""
        try:
            return self._collate([self._dataset[index] for index in indices])
        except Exception as error:  # any error of a dataset is passed on
            if get_worker_info() is None or not _survives_pickling(error):
                raise
            return WorkerFailure(error, traceback.format_exc())


def identity(batch: Any) -> Any:
    """Return the batch unchanged: ``BatchDataset`` has collated it."""
    return batch


def raise_failures(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield batches. Raise the error of a ``WorkerFailure``, with the traceback of the worker as its cause."""
    for batch in batches:
        if isinstance(batch, WorkerFailure):
            raise batch.error from RuntimeError(f"in a process that loads data:\n{batch.trace}")
        yield batch


def _survives_pickling(error: Exception) -> bool:
    """Whether an error is the same after pickling. Others would make the queue between the processes hang."""
    try:
        return str(pickle.loads(pickle.dumps(error))) == str(error)
    except Exception:  # unpickling runs the constructor of any class
        return False
