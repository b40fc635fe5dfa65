"""What callbacks have changed in a module, and change back before the next fit if the run ends without a word to them.

Lightning reports the end of a run by ``on_fit_end``, ``teardown`` or ``on_exception``, but to the callbacks that the
trainer has at that moment: a search (``Tuner.lr_find``) takes them off, and if it fails it does not put them back
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
from slicefine_pl.callbacks.support.other_callbacks import trainer_callbacks
from slicefine_pl.network.names import shortlist
from slicefine_pl.slicing.layers.base import SlicedLayer

HOOK = "configure_callbacks"  # of the module: the first hook of every run, before any callback's


def register_cleanup(
    trainer: Trainer, pl_module: LightningModule, callback: Callback, undo: Callable[[], None]
) -> None:
    """Have ``undo`` called at the start of the module's next fit, by whichever trainer, unless it is settled before.

    Args:
        trainer: Of this run.
        pl_module: The module that is about to be changed.
        callback: That changes it.
        undo: Changes it back, and calls :func:`unregister_cleanup`.
    """
    pending = pl_module.__dict__.get(HOOK)
    if not isinstance(pending, _PendingCleanup):
        pending = pl_module.__dict__[HOOK] = _PendingCleanup(pl_module)
    pending.trainer = weakref.ref(trainer)
    pending.undo[callback] = undo


def unregister_cleanup(pl_module: LightningModule, callback: Callback) -> None:
    """Say that a callback has nothing to undo in the module any more."""
    pending = pl_module.__dict__.get(HOOK)
    if isinstance(pending, _PendingCleanup):
        pending.undo.pop(callback, None)
        if not pending.undo:
            pending.leave()


class _PendingCleanup:
    """Stands before the ``configure_callbacks`` of a module while callbacks have it changed.

    A copy of the module (deepcopy, pickle) gets one that can undo nothing, as no callback knows the copy.
    """

    def __init__(self, pl_module: LightningModule) -> None:
        self.undo: dict[Callback, Callable[[], None]] = {}
        self.trainer: weakref.ref[Trainer] | None = None
        self._pl_module = pl_module
        self._own = pl_module.__dict__.get(HOOK)  # somebody may have put a function there

    def __call__(self) -> Any:
        """Clean up if this is a fit, then do what the module does by itself."""
        trainer = self._pl_module.trainer
        if trainer.state.fn == TrainerFn.FITTING:
            self._clean_up(trainer)
        return type(self._pl_module).configure_callbacks(self._pl_module) if self._own is None else self._own()

    def __reduce__(self) -> tuple[Any, ...]:
        return _PendingCleanup, (self._pl_module,)

    def _clean_up(self, trainer: Trainer) -> None:
        left = list(self.undo)
        for undo in list(self.undo.values()):
            undo()
        self.leave()
        names = shortlist(type(callback).__name__ for callback in left)
        if left and trainer is (self.trainer and self.trainer()) and not set(left) <= set(trainer_callbacks(trainer)):
            raise MisconfigurationException(
                f"This trainer has lost its callbacks, {names} among them: a search took them off and failed before it"
                " put them back. The module is as it was before; make a new Trainer."
            )
        if left:
            rank_zero_info(f"{names}: the last run was broken off; what it left open in the module is closed now.")
        sliced = [name for name, module in self._pl_module.named_modules() if isinstance(module, SlicedLayer)]
        if sliced and not left:
            raise MisconfigurationException(
                f"This module is a copy that was made while slices were open: {shortlist(sliced)} would train a few"
                " lines, and all else is frozen. Call slicefine_pl.slicing.close_slices(module) and"
                " module.requires_grad_(True), or copy it after the fit."
            )

    def leave(self) -> None:
        """Give the module its own hook back."""
        cancel_deferred(self._pl_module)
        if self._own is None:
            self._pl_module.__dict__.pop(HOOK, None)
        else:
            self._pl_module.__dict__[HOOK] = self._own
