"""LightningDataModules: where examples come from and how they become batches."""

from slicefine_pl.data.image.datamodule import ImageDataModule
from slicefine_pl.data.text.classification import TextDataModule
from slicefine_pl.data.text.instructions import InstructionDataModule
from slicefine_pl.data.video.kinetics import KineticsDataModule

__all__ = ["ImageDataModule", "InstructionDataModule", "KineticsDataModule", "TextDataModule"]
