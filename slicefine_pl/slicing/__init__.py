"""Which block of a weight is live, and layers that train only that block.  Pure torch."""

from slicefine_pl.slicing.change import LearnedChange, LineChanges
from slicefine_pl.slicing.frozen import LeftFrozen
from slicefine_pl.slicing.kinds import Backend
from slicefine_pl.slicing.layer import as_dense
from slicefine_pl.slicing.live import LiveSlice, MoveWatcher
from slicefine_pl.slicing.model import SliceHandle, close_slices, slice_model
from slicefine_pl.slicing.positions import Axis, Line, Order
from slicefine_pl.slicing.summary import SliceCounts, Summary

__all__ = [
    "Axis",
    "Backend",
    "LearnedChange",
    "LeftFrozen",
    "Line",
    "LineChanges",
    "LiveSlice",
    "MoveWatcher",
    "Order",
    "SliceCounts",
    "SliceHandle",
    "Summary",
    "as_dense",
    "close_slices",
    "slice_model",
]
