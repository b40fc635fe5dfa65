"""When slices and masks act in a Lightning run."""

from slicefine_pl.callbacks.slicefine import SliceFineCallback
from slicefine_pl.callbacks.sparsity import SparsityCallback

__all__ = ["SliceFineCallback", "SparsityCallback"]
