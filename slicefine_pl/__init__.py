"""Fine-tune a network in PyTorch Lightning by training a small slice of its weights, or prune it while it trains.

``SliceFineCallback`` and ``SparsityCallback`` do this for any LightningModule. With FSDP2, use
``FullyShardedStrategy``.

Names are imported when they are first used, so that ``import slicefine_pl`` loads neither torch nor Lightning.
"""

from typing import TYPE_CHECKING

from slicefine_pl.optional import lazy_names
from slicefine_pl.version import __version__

if TYPE_CHECKING:
    from slicefine_pl.callbacks.slicefine import SliceFineCallback
    from slicefine_pl.callbacks.sparsity import SparsityCallback
    from slicefine_pl.callbacks.support.deferred_setup import shard_sliced_model
    from slicefine_pl.slicing.checkpoint import complete_checkpoint
    from slicefine_pl.strategy import FullyShardedStrategy
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "FullyShardedStrategy": "slicefine_pl.strategy",
            "SliceFineCallback": "slicefine_pl.callbacks.slicefine",
            "SparsityCallback": "slicefine_pl.callbacks.sparsity",
            "complete_checkpoint": "slicefine_pl.slicing.checkpoint",
            "shard_sliced_model": "slicefine_pl.callbacks.support.deferred_setup",
        },
    )

__all__ = [
    "FullyShardedStrategy",
    "SliceFineCallback",
    "SparsityCallback",
    "__version__",
    "complete_checkpoint",
    "shard_sliced_model",
]
