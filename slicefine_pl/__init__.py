"""SliceFine for PyTorch Lightning: train one small moving slice of a pretrained network's own weights; and prune it."""

from slicefine_pl.callbacks import SliceFineCallback, SparsityCallback

__all__ = ["SliceFineCallback", "SparsityCallback", "__version__"]
__version__ = "0.1.0"
