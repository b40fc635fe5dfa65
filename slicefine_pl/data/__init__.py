"""LightningDataModules for texts, images and videos, from files of your own, public datasets or demo data.

Every data module resumes inside an epoch, gives each process the same number of batches, and preprocesses examples for
a trained network as during its training. Batches are dictionaries of tensors; those of labeled data have the key
``labels``.
"""

from typing import TYPE_CHECKING

from slicefine_pl.optional import lazy_names

if TYPE_CHECKING:
    from slicefine_pl.data.image.datamodule import ImageDataModule
    from slicefine_pl.data.text.classification import TextDataModule
    from slicefine_pl.data.text.instructions import InstructionDataModule
    from slicefine_pl.data.video.datamodule import VideoDataModule
    from slicefine_pl.data.video.kinetics import KineticsDataModule
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "ImageDataModule": "slicefine_pl.data.image.datamodule",
            "InstructionDataModule": "slicefine_pl.data.text.instructions",
            "KineticsDataModule": "slicefine_pl.data.video.kinetics",
            "TextDataModule": "slicefine_pl.data.text.classification",
            "VideoDataModule": "slicefine_pl.data.video.datamodule",
        },
    )

__all__ = ["ImageDataModule", "InstructionDataModule", "KineticsDataModule", "TextDataModule", "VideoDataModule"]
