"""When slices and masks act in a Lightning run."""

from slicefine_pl.callbacks.kernel_drift import KernelDrift
from slicefine_pl.callbacks.preemption import SaveWhenPreempted
from slicefine_pl.callbacks.slice_map import SlicePicture
from slicefine_pl.callbacks.slicefine import SliceFineCallback
from slicefine_pl.callbacks.sparsity import SparsityCallback
from slicefine_pl.callbacks.support.deferred_setup import shard_sliced_model

__all__ = [
    "KernelDrift",
    "SaveWhenPreempted",
    "SliceFineCallback",
    "SlicePicture",
    "SparsityCallback",
    "shard_sliced_model",
]
