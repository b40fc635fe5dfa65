"""Records of what a network saw during training: image size and crop, frames of a clip, maximum text length.

A data module decides how examples are presented to a network. Evaluation and prediction must present them in the same
way as training did. So the settings form a record that is stored with the network:

- A module takes the record from its data module when training starts, and stores it in every checkpoint and in
  ``config.json`` of every export.
- A data module that serves a trained network reads the record. In evaluation, prediction and a resumed fit, settings
  that contradict it are an error. A new fit may choose other settings.

This package contains the records and how they are stored and compared. It imports neither networks nor data.
"""

from slicefine_pl.inputs.record import RECORD_KEY, InputRecord, parse_input, resolve_input, stored_input, stored_record
from slicefine_pl.inputs.text import TextInput
from slicefine_pl.inputs.visual import ImageInput, VideoInput

__all__ = [
    "RECORD_KEY",
    "ImageInput",
    "InputRecord",
    "TextInput",
    "VideoInput",
    "parse_input",
    "resolve_input",
    "stored_input",
    "stored_record",
]
