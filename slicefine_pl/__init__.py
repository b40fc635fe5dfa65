"""SliceFine for PyTorch Lightning: train one small moving slice of a pretrained network's own weights; and prune it."""

from slicefine_pl.callbacks import SliceFineCallback, SparsityCallback, shard_sliced_model
from slicefine_pl.strategy import FullyShardedStrategy

__all__ = ["FullyShardedStrategy", "SliceFineCallback", "SparsityCallback", "__version__", "shard_sliced_model"]
__version__ = "0.1.0"
