"""LightningDataModules: where examples come from and how they become batches."""

from slicefine_pl.data.image import ImageDataModule
from slicefine_pl.data.instructions import InstructionDataModule
from slicefine_pl.data.kinetics import KineticsDataModule
from slicefine_pl.data.text import TextDataModule

__all__ = ["ImageDataModule", "InstructionDataModule", "KineticsDataModule", "TextDataModule"]
