"""When slices and masks act in a Lightning run."""

from slicefine_pl.callbacks.slicefine import SliceFineCallback

__all__ = ["SliceFineCallback"]
