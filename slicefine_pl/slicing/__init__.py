"""Which block of a weight is live, and layers that train only that block.  Pure torch."""

from slicefine_pl.slicing.frozen import FrozenReport
from slicefine_pl.slicing.handle import SliceHandle, close_slices, slice_model
from slicefine_pl.slicing.layers.base import as_dense
from slicefine_pl.slicing.layers.registry import Backend
from slicefine_pl.slicing.schedule import Axis, AxisSchedule, Order
from slicefine_pl.slicing.summary import SliceCounts, SliceSummary
from slicefine_pl.slicing.updates import LineUpdates, UpdateTracker
from slicefine_pl.slicing.view import MoveListener, SliceView

__all__ = [
    "Axis",
    "AxisSchedule",
    "Backend",
    "FrozenReport",
    "LineUpdates",
    "MoveListener",
    "Order",
    "SliceCounts",
    "SliceHandle",
    "SliceSummary",
    "SliceView",
    "UpdateTracker",
    "as_dense",
    "close_slices",
    "slice_model",
]
