"""SliceFine for PyTorch Lightning: train one small moving slice of a pretrained network's own weights."""

from slicefine_pl.callbacks import SliceFineCallback

__all__ = ["SliceFineCallback", "__version__"]
__version__ = "0.1.0"
