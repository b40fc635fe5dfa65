"""Fine-tune a network by training one small slice of each weight: a few of its columns or rows.

:func:`slice_model` freezes a network and opens a slice in each target layer. The slice is a small parameter that the
optimizer updates; a forward pass copies its values to their position in the frozen weight, so it stays an ordinary
dense one. ``handle.move()`` moves the slices to other columns or rows, and ``handle.close()`` returns a plain network.

Needs torch only, and works in any training loop. With Lightning, use ``SliceFineCallback``.

Source:  Kowsher et al., SliceFine, arXiv:2510.08513.
"""

from slicefine_pl.slicing.applied import AppliedSlices, SliceTasks, apply_slices
from slicefine_pl.slicing.frozen import FrozenReport
from slicefine_pl.slicing.handle import SliceHandle
from slicefine_pl.slicing.layers.opening import as_dense, close_slices
from slicefine_pl.slicing.layers.registry import Backend
from slicefine_pl.slicing.lora import LoraExport, export_lora
from slicefine_pl.slicing.open import slice_model
from slicefine_pl.slicing.saved_directions import LostEntries, SavedDirections
from slicefine_pl.slicing.saved_lines import SavedLines
from slicefine_pl.slicing.schedule import Axis, AxisSchedule, Order
from slicefine_pl.slicing.slice_file import SliceFile
from slicefine_pl.slicing.summary import SliceCounts, SliceSummary
from slicefine_pl.slicing.updates import LineUpdates, UpdateTracker
from slicefine_pl.slicing.view import MoveListener, SliceView

__all__ = [
    "AppliedSlices",
    "Axis",
    "AxisSchedule",
    "Backend",
    "FrozenReport",
    "LineUpdates",
    "LoraExport",
    "LostEntries",
    "MoveListener",
    "Order",
    "SavedDirections",
    "SavedLines",
    "SliceCounts",
    "SliceFile",
    "SliceHandle",
    "SliceSummary",
    "SliceTasks",
    "SliceView",
    "UpdateTracker",
    "apply_slices",
    "as_dense",
    "close_slices",
    "export_lora",
    "slice_model",
]
