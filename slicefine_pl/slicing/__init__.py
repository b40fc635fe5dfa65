"""Which block of a weight is live, and layers that train only that block.  Pure torch."""

from slicefine_pl.slicing.frozen import LeftFrozen
from slicefine_pl.slicing.handle import SliceHandle, close_slices, slice_model
from slicefine_pl.slicing.layers.base import as_dense
from slicefine_pl.slicing.layers.registry import Backend
from slicefine_pl.slicing.schedule import Axis, AxisSchedule, Order
from slicefine_pl.slicing.summary import SliceCounts, Summary
from slicefine_pl.slicing.updates import LearnedChange, LineChanges
from slicefine_pl.slicing.view import LiveSlice, MoveListener

__all__ = [
    "Axis",
    "AxisSchedule",
    "Backend",
    "LearnedChange",
    "LeftFrozen",
    "LineChanges",
    "LiveSlice",
    "MoveListener",
    "Order",
    "SliceCounts",
    "SliceHandle",
    "Summary",
    "as_dense",
    "close_slices",
    "slice_model",
]
