"""Data module of Kinetics."""

from typing import ClassVar

from slicefine_pl.data.video.datamodule import VideoDataModule


class KineticsDataModule(VideoDataModule):
    """:class:`VideoDataModule` with the evaluation protocol that is usual on Kinetics.

    Tests and predictions average 4 clips x 3 crops of each video, if ``test_clips`` and ``test_crops`` are not given.
    All settings are those of :class:`VideoDataModule`.
    """

    test_views: ClassVar[tuple[int, int]] = (4, 3)
