"""LightningModules: what is trained, and by which loss."""

from slicefine_pl.modules.image.classifier import ImageClassifier
from slicefine_pl.modules.text.causal_lm import CausalLanguageModel
from slicefine_pl.modules.text.classifier import TextClassifier
from slicefine_pl.modules.video.classifier import VideoClassifier

__all__ = ["CausalLanguageModel", "ImageClassifier", "TextClassifier", "VideoClassifier"]
