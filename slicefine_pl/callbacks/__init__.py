"""Lightning callbacks for slices, pruning and measurements.

- ``SliceFineCallback`` trains slices, ``SparsityCallback`` prunes.
- ``LinearProbe`` and ``KernelDrift`` measure, ``SliceMap`` and ``PredictionGrid`` plot.
- ``PreemptionCheckpoint`` saves a checkpoint when the process receives SIGTERM.

Parts that several callbacks use are in ``slicefine_pl.callbacks.support``.
"""

from slicefine_pl.callbacks.kernel_drift import KernelDrift
from slicefine_pl.callbacks.linear_probe import LinearProbe
from slicefine_pl.callbacks.prediction_grid import PredictionGrid
from slicefine_pl.callbacks.preemption import PreemptionCheckpoint
from slicefine_pl.callbacks.slice_map import SliceMap
from slicefine_pl.callbacks.slicefine import SliceFineCallback
from slicefine_pl.callbacks.sparsity import SparsityCallback

__all__ = [
    "KernelDrift",
    "LinearProbe",
    "PredictionGrid",
    "PreemptionCheckpoint",
    "SliceFineCallback",
    "SliceMap",
    "SparsityCallback",
]
