"""LightningDataModules: where examples come from and how they become batches."""

from typing import TYPE_CHECKING

from slicefine_pl.optional import lazy_names

if TYPE_CHECKING:
    from slicefine_pl.data.image.datamodule import ImageDataModule
    from slicefine_pl.data.text.classification import TextDataModule
    from slicefine_pl.data.text.instructions import InstructionDataModule
    from slicefine_pl.data.video.kinetics import KineticsDataModule
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "ImageDataModule": "slicefine_pl.data.image.datamodule",
            "InstructionDataModule": "slicefine_pl.data.text.instructions",
            "KineticsDataModule": "slicefine_pl.data.video.kinetics",
            "TextDataModule": "slicefine_pl.data.text.classification",
        },
    )

__all__ = ["ImageDataModule", "InstructionDataModule", "KineticsDataModule", "TextDataModule"]
