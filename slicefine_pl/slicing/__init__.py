"""Which block of a weight is live, and layers that train only that block.  Pure torch."""

from slicefine_pl.slicing.model import LiveSlice, SliceCounts, SliceHandle, close_slices, slice_model
from slicefine_pl.slicing.positions import Axis, Line, Order

__all__ = ["Axis", "Line", "LiveSlice", "Order", "SliceCounts", "SliceHandle", "close_slices", "slice_model"]
