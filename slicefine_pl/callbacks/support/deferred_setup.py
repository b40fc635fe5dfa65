"""When does the module's model exist?  A callback that changes it waits until then, and sharding until after that."""

from collections.abc import Callable

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.distributed.device_mesh import DeviceMesh

from slicefine_pl.network.names import NamePatterns
from slicefine_pl.slicing.distributed.fsdp import shard_model

DEFERRED = "slicefine_deferred"  # an attribute of the module: what is to be done when its model exists


def after_configure_model(trainer: Trainer, pl_module: LightningModule, action: Callable[[], None]) -> None:
    """Run ``action`` now, or after ``configure_model`` where the module builds its model in that or in ``setup``.

    To be called in ``Callback.setup``, which comes before both.  The module has the types of the trainer's precision
    then: Lightning converts it only after it has restored a checkpoint, and a float32 module that loads what a
    "64-true" run saved has lost half of the digits.
    """

    def convert_then_act() -> None:
        trainer.precision_plugin.convert_module(pl_module)
        action()

    if not (is_overridden("setup", pl_module) or is_overridden("configure_model", pl_module)):
        convert_then_act()
        return
    if DEFERRED not in pl_module.__dict__:
        pl_module.__dict__[DEFERRED] = []
        _run_after_configure_model(pl_module)
    pl_module.__dict__[DEFERRED].append(convert_then_act)


def shard_sliced_model(
    pl_module: LightningModule,
    mesh: DeviceMesh | None = None,
    blocks: NamePatterns | None = None,
    offload: bool = False,
) -> list[str]:
    r"""Share a module out among processes from within its own ``configure_model``, after its slices were opened.

    Only who wants another mesh or other blocks than ``FullyShardedStrategy`` takes needs it: that shards by itself.

    Args:
        pl_module: The module, whose model exists by now.
        mesh: See :func:`slicefine_pl.slicing.distributed.fsdp.shard_model`; ``None`` takes all processes.
        blocks: Likewise.
        offload: Likewise.

    Returns:
        Names of the blocks.

    Example:
        >>> class Module(LightningModule):
        ...     def configure_model(self):
        ...         if not hasattr(self, "net"):
        ...             self.net = build_a_large_network()
        ...             shard_sliced_model(self, self.device_mesh["data_parallel"], blocks=r"net\.layers\.\d+")
    """
    _run_deferred(pl_module)
    pl_module.trainer.precision_plugin.convert_module(pl_module)
    return shard_model(pl_module, mesh, blocks, offload)


def _run_after_configure_model(pl_module: LightningModule) -> None:
    """Have what waits run once, right after the module's next ``configure_model``: the model exists from then on."""
    configure_model = pl_module.configure_model

    def configure_then_act() -> None:
        try:
            configure_model()
        finally:
            del pl_module.__dict__["configure_model"]
        _run_deferred(pl_module)

    # Not a wrapper in Lightning's eyes (no functools.wraps): it then calls the hook even if the class has none.
    pl_module.__dict__["configure_model"] = configure_then_act


def _run_deferred(pl_module: LightningModule) -> None:
    for action in pl_module.__dict__.pop(DEFERRED, []):
        action()


def cancel_deferred(pl_module: LightningModule) -> None:
    """Drop what still waits for the model, as the run ended before it was built."""
    if DEFERRED in pl_module.__dict__:
        del pl_module.__dict__[DEFERRED]
        pl_module.__dict__.pop("configure_model", None)
