"""Clean up a module at the start of its next fit, if the last run ended without notifying our callbacks.

Lightning reports the end of a run by ``on_fit_end``, ``teardown`` or ``on_exception``, but only to the callbacks that
the trainer has at that moment. A search (``Tuner.lr_find``) removes them, and does not restore them if it fails
(Lightning 2.6.6, ``tuner/lr_finder.py``).
"""

import weakref
from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from slicefine_pl.callbacks.support.deferred_setup import cancel_deferred
from slicefine_pl.network.names import shortlist
from slicefine_pl.slicing.layers.base import SlicedLayer
from slicefine_pl.trainer_callbacks import trainer_callbacks

HOOK = "configure_callbacks"  # the module's hook that Lightning calls first in every run, before any callback


def register_cleanup(
    trainer: Trainer, pl_module: LightningModule, callback: Callback, cleanup: Callable[[], None]
) -> None:
    """Call ``cleanup`` at the start of the module's next fit, with any trainer, unless it is unregistered before.

    Args:
        trainer: Trainer of this run.
        pl_module: The module that is about to be changed.
        callback: The callback that changes it.
        cleanup: Changes it back, and calls :func:`unregister_cleanup`.
    """
    pending = pl_module.__dict__.get(HOOK)
    if not isinstance(pending, _PendingCleanup):
        pending = pl_module.__dict__[HOOK] = _PendingCleanup(pl_module)
    pending.trainer = weakref.ref(trainer)
    pending.cleanups[callback] = cleanup


def unregister_cleanup(pl_module: LightningModule, callback: Callback) -> None:
    """Drop a callback's cleanup, because the module has been changed back."""
    pending = pl_module.__dict__.get(HOOK)
    if isinstance(pending, _PendingCleanup):
        pending.cleanups.pop(callback, None)
        if not pending.cleanups:
            pending.remove()


class _PendingCleanup:
    """Replaces a module's ``configure_callbacks`` while callbacks have the module changed.

    A copy of the module (deepcopy, pickle) gets an instance without cleanups, because no callback refers to the copy.
    """

    def __init__(self, pl_module: LightningModule) -> None:
        self.cleanups: dict[Callback, Callable[[], None]] = {}
        self.trainer: weakref.ref[Trainer] | None = None
        self._pl_module = pl_module
        self._replaced = pl_module.__dict__.get(HOOK)  # a function that the user assigned to the instance

    def __call__(self) -> Any:
        """Clean up if this run is a fit, then call the module's own hook."""
        trainer = self._pl_module.trainer
        if trainer.state.fn == TrainerFn.FITTING:
            self._clean_up(trainer)
        if self._replaced is None:
            return type(self._pl_module).configure_callbacks(self._pl_module)
        return self._replaced()

    def __reduce__(self) -> tuple[Any, ...]:
        return _PendingCleanup, (self._pl_module,)

    def _clean_up(self, trainer: Trainer) -> None:
        callbacks = list(self.cleanups)
        for cleanup in list(self.cleanups.values()):
            cleanup()
        self.remove()
        if not callbacks:
            self._refuse_sliced_copy()
            return
        names = shortlist(type(callback).__name__ for callback in callbacks)
        same_trainer = trainer is (self.trainer and self.trainer())
        if same_trainer and not set(callbacks) <= set(trainer_callbacks(trainer)):
            raise MisconfigurationException(
                f"This trainer has lost its callbacks, {names} among them: a search removed them and failed before it"
                " restored them. The module is as it was before; make a new Trainer."
            )
        rank_zero_info(f"{names}: the last run was aborted; the changes it left in the module are undone now.")

    def _refuse_sliced_copy(self) -> None:
        sliced = [name for name, module in self._pl_module.named_modules() if isinstance(module, SlicedLayer)]
        if sliced:
            raise MisconfigurationException(
                f"This module is a copy that was made while slices were open: {shortlist(sliced)} would train a few"
                " lines, and all other parameters are frozen. Call slicefine_pl.slicing.close_slices(module) and"
                " module.requires_grad_(True), or copy the module after the fit."
            )

    def remove(self) -> None:
        """Restore the module's own hook."""
        cancel_deferred(self._pl_module)
        if self._replaced is None:
            self._pl_module.__dict__.pop(HOOK, None)
        else:
            self._pl_module.__dict__[HOOK] = self._replaced
