"""The folder of a run: created for this run alone, and removed if training fails before its first step."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from slicefine_pl.files.local import is_local


class RunFolder:
    """The folder that a fit writes to: that of its first logger, or the trainer's root folder.

    Lightning's loggers choose the number after the highest existing ``version_N``, and create the folder later, so two
    runs that start at the same time share a folder. ``claim`` creates it at once, and takes the next number if another
    run was faster. With several processes, rank 0 claims, and ``Trainer.log_dir`` broadcasts the folder.

    Args:
        trainer: Trainer before its fit, whose ``log_dir`` was not read yet.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        logger: Any = trainer.logger
        self._numbered: Any = (
            logger if isinstance(logger, CSVLogger | TensorBoardLogger) and _chooses_version(logger) else None
        )
        self._created: list[Path] = []

    @property
    def path(self) -> Path:
        """The folder; all processes have to read this property."""
        return Path(self._trainer.log_dir or self._trainer.default_root_dir)

    def claim(self) -> None:
        """Create the folder for this run alone, unless the user gave its version."""
        while self._numbered is not None and self._trainer.is_global_zero and not self._created:
            folder = Path(self._numbered.root_dir) / f"version_{self._numbered.version}"
            absent = [each for each in (folder, *folder.parents) if not each.exists()]
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
                self._created = absent
            except FileExistsError:
                self._numbered._version += 1
            except FileNotFoundError:  # a failed run has just removed the parent
                continue

    def release(self) -> None:
        """Remove the claimed folder, and the parents that were created with it, if they are empty."""
        if not self._created:
            return
        folder, *parents = self._created
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # not empty
            for parent in parents:
                parent.rmdir()


def _chooses_version(logger: Any) -> bool:
    """Whether a logger chooses its version itself, on a local disk."""
    return logger._version is None and is_local(str(logger.save_dir))
