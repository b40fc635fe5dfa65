"""The random state of training, separate from that of validation and data loading.

A run that resumes makes new data iterators, and may skip a validation that the uninterrupted run did. Both draw from
the global generators. To repeat the uninterrupted run, training continues from the state at the end of its last batch:
after a validation, at the start of an epoch and after a resume.
"""

import random
from typing import Any

import numpy as np
import torch


class TrainingRandomState:
    """The state of all generators at the end of the last training batch, restored where training continues."""

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None
        self._changed = False

    def save(self) -> None:
        """Save the generators' state at the end of a training batch."""
        self._state = {
            "python": random.getstate(),
            "numpy": np.random.get_state(legacy=False),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if _uses_cuda() else None,  # of this process's device
        }

    def mark_changed(self) -> None:
        """Have the next batch restore the saved state, because other code may have drawn numbers."""
        self._changed = True

    def before_epoch(self, iterator_exists: bool) -> None:
        """Restore the saved state before the epoch's data iterator is made, which may shuffle with it.

        Args:
            iterator_exists: Whether the iterator exists already. It may still draw its order from the current state,
                so nothing is restored.
        """
        if not iterator_exists:
            self._restore()
        self._changed = True

    def before_batch(self) -> None:
        """Restore the saved state if other code may have drawn numbers."""
        if self._changed:
            self._restore()
            self._changed = False

    def _restore(self) -> None:
        if self._state is None:
            return
        random.setstate(self._state["python"])
        np.random.set_state(self._state["numpy"])
        torch.set_rng_state(self._state["torch"])
        if self._state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self._state["cuda"])

    def state_dict(self) -> dict[str, Any] | None:
        """Return the saved state as numbers, strings and tensors."""
        if self._state is None:
            return None
        numpy = self._state["numpy"]
        key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
        flat = {**numpy, "state": {"key": key, "pos": int(numpy["state"]["pos"])}}
        return {**self._state, "numpy": flat}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Restore a state of :meth:`state_dict`, now and at the next batch."""
        if state is None:
            return
        saved = state["numpy"]
        key = saved["state"]["key"].numpy().astype(np.uint32)
        self._state = {**state, "numpy": {**saved, "state": {"key": key, "pos": saved["state"]["pos"]}}}
        self._restore()
        self._changed = True


def _uses_cuda() -> bool:
    """Whether this process uses a GPU; ``torch.cuda.is_available`` would take a millisecond."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
