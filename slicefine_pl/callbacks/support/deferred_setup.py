"""Run an action as soon as a module's model exists, before the model is sharded."""

from collections.abc import Callable

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.distributed.device_mesh import DeviceMesh

from slicefine_pl.network.names import NamePatterns
from slicefine_pl.slicing.distributed.fsdp import shard_model

DEFERRED = "slicefine_deferred"  # attribute of the module: the actions to run when its model exists


def after_configure_model(trainer: Trainer, pl_module: LightningModule, action: Callable[[], None]) -> None:
    """Run ``action`` now, or after ``configure_model`` if the module overrides that hook or ``setup``.

    Call this in ``Callback.setup``, which runs before both. The module is first converted to the trainer's precision.
    Lightning itself converts it only after it has restored a checkpoint, and a float32 module that loads a checkpoint
    of a "64-true" run loses half of the digits.
    """

    def convert_then_act() -> None:
        trainer.precision_plugin.convert_module(pl_module)
        action()

    if not (is_overridden("setup", pl_module) or is_overridden("configure_model", pl_module)):
        convert_then_act()
        return
    if DEFERRED not in pl_module.__dict__:
        pl_module.__dict__[DEFERRED] = []
        _wrap_configure_model(pl_module)
    pl_module.__dict__[DEFERRED].append(convert_then_act)


def shard_sliced_model(
    pl_module: LightningModule,
    mesh: DeviceMesh | None = None,
    blocks: NamePatterns | None = None,
    offload: bool = False,
) -> list[str]:
    r"""Open the slices of a module, then shard it; for use in the module's own ``configure_model``.

    ``FullyShardedStrategy`` shards a module automatically. Use this function only for another mesh or other blocks.

    Args:
        pl_module: The module; its model exists.
        mesh: See :func:`slicefine_pl.slicing.distributed.fsdp.shard_model`; ``None`` uses all processes.
        blocks: See ``shard_model``.
        offload: See ``shard_model``.

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


def _wrap_configure_model(pl_module: LightningModule) -> None:
    """Run the deferred actions once, right after the module's next ``configure_model``."""
    configure_model = pl_module.configure_model

    def configure_then_act() -> None:
        try:
            configure_model()
        finally:
            del pl_module.__dict__["configure_model"]
        _run_deferred(pl_module)

    # Without functools.wraps, so that Lightning calls the hook even if the class does not override it.
    pl_module.__dict__["configure_model"] = configure_then_act


def _run_deferred(pl_module: LightningModule) -> None:
    for action in pl_module.__dict__.pop(DEFERRED, []):
        action()


def cancel_deferred(pl_module: LightningModule) -> None:
    """Drop the deferred actions of a run that ended before the model was built."""
    if DEFERRED in pl_module.__dict__:
        del pl_module.__dict__[DEFERRED]
        pl_module.__dict__.pop("configure_model", None)
