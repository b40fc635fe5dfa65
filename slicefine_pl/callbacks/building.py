"""When does the module's model exist?  A callback that changes it must wait until then."""

from collections.abc import Callable

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden


def when_built(pl_module: LightningModule, action: Callable[[], None]) -> None:
    """Run ``action`` now, or after ``configure_model`` where the module builds its model in that or in ``setup``.

    To be called in ``Callback.setup``, which comes before both.
    """
    if is_overridden("setup", pl_module) or is_overridden("configure_model", pl_module):
        _run_after_configure_model(pl_module, action)
    else:
        action()


def _run_after_configure_model(pl_module: LightningModule, action: Callable[[], None]) -> None:
    """Have ``action`` run once, right after the module's next ``configure_model``: the model exists from then on."""
    configure_model = pl_module.configure_model

    def configure_then_act() -> None:
        configure_model()
        del pl_module.__dict__["configure_model"]
        action()

    # Not a wrapper in Lightning's eyes (no functools.wraps): it then calls the hook even if the class has none.
    pl_module.__dict__["configure_model"] = configure_then_act
