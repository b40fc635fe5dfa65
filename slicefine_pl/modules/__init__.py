"""LightningModules: what is trained, and by which loss."""

from slicefine_pl.modules.text import TextClassifier
from slicefine_pl.modules.video import VideoClassifier

__all__ = ["TextClassifier", "VideoClassifier"]
