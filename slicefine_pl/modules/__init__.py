"""LightningModules: what is trained, and by which loss."""

from slicefine_pl.modules.causal_lm import CausalLanguageModel
from slicefine_pl.modules.image import ImageClassifier
from slicefine_pl.modules.text import TextClassifier
from slicefine_pl.modules.video import VideoClassifier

__all__ = ["CausalLanguageModel", "ImageClassifier", "TextClassifier", "VideoClassifier"]
