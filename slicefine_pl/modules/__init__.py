"""LightningModules for texts, images, videos and language models: network, loss, metrics, optimizer and export.

A module loads a pretrained backbone, adds a classification or regression head if the task needs one, and exports the
trained network in the format of its own library. Slicing and pruning are not part of the modules; callbacks add them.
"""

from typing import TYPE_CHECKING

from slicefine_pl.optional import lazy_names

if TYPE_CHECKING:
    from slicefine_pl.modules.image.classifier import ImageClassifier
    from slicefine_pl.modules.text.causal_lm import CausalLanguageModel
    from slicefine_pl.modules.text.classifier import TextClassifier
    from slicefine_pl.modules.video.classifier import VideoClassifier
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "CausalLanguageModel": "slicefine_pl.modules.text.causal_lm",
            "ImageClassifier": "slicefine_pl.modules.image.classifier",
            "TextClassifier": "slicefine_pl.modules.text.classifier",
            "VideoClassifier": "slicefine_pl.modules.video.classifier",
        },
    )

__all__ = ["CausalLanguageModel", "ImageClassifier", "TextClassifier", "VideoClassifier"]
