"""The random numbers of training, kept apart from those of validation and data loading, so that a resumed run repeats
an uninterrupted one.
"""

import random
from typing import Any

import numpy as np
import torch


class TrainingRandomState:
    """Holds the generators' state at the end of the last training batch, and puts it back where training goes on.

    A run that resumes builds its data iterators anew and may skip a validation that the uninterrupted run made; both
    draw from the global generators.  So training goes on from where its own last batch left them: after validation, at
    the start of an epoch, and after a resume, in a resumed and in an uninterrupted run alike.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None
        self._due = False

    def remember(self) -> None:
        """Take the generators' state, at the end of a training batch."""
        self._state = {
            "python": random.getstate(),
            "numpy": np.random.get_state(legacy=False),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if _on_gpu() else None,  # of this process's device
        }

    def expect_detour(self) -> None:
        """Say that something else has drawn numbers since; the next batch starts from the remembered state."""
        self._due = True

    def before_epoch(self, iterator_exists: bool) -> None:
        """Put the remembered state back before the epoch's data iterator is made, which may shuffle by it.

        Args:
            iterator_exists: It was made already, and will draw its order lazily from what it has left.
        """
        if not iterator_exists:
            self._restore()
        self._due = True

    def before_batch(self) -> None:
        """Put the remembered state back if somebody else may have drawn numbers since."""
        if self._due:
            self._restore()
            self._due = False

    def _restore(self) -> None:
        if self._state is None:
            return
        random.setstate(self._state["python"])
        np.random.set_state(self._state["numpy"])
        torch.set_rng_state(self._state["torch"])
        if self._state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self._state["cuda"])

    def state_dict(self) -> dict[str, Any] | None:
        """The remembered state as numbers, strings and tensors."""
        if self._state is None:
            return None
        numpy = self._state["numpy"]
        key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
        flat = {**numpy, "state": {"key": key, "pos": int(numpy["state"]["pos"])}}
        return {**self._state, "numpy": flat}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Take a saved state and go on from it."""
        if state is None:
            return
        saved = state["numpy"]
        key = saved["state"]["key"].numpy().astype(np.uint32)
        self._state = {**state, "numpy": {**saved, "state": {"key": key, "pos": saved["state"]["pos"]}}}
        self._restore()
        self._due = True


def _on_gpu() -> bool:
    """Whether this process uses one; to ask whether there is one takes a millisecond."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
