"""When slices and masks act in a Lightning run."""

from slicefine_pl.callbacks.building import shard_sliced_model
from slicefine_pl.callbacks.kernel_drift import KernelDrift
from slicefine_pl.callbacks.preemption import SaveWhenPreempted
from slicefine_pl.callbacks.slice_picture import SlicePicture
from slicefine_pl.callbacks.slicefine import SliceFineCallback
from slicefine_pl.callbacks.sparsity import SparsityCallback

__all__ = [
    "KernelDrift",
    "SaveWhenPreempted",
    "SliceFineCallback",
    "SlicePicture",
    "SparsityCallback",
    "shard_sliced_model",
]
