"""The folder of one run: no other run shares it, and a fit that fails before its first step leaves none."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from slicefine_pl.files.local import is_local


class RunFolder:
    """Where a fit writes: the folder of its first logger, or the trainer's root folder.

    Lightning's loggers take the number after the highest ``version_N`` that exists, and make the folder later, so that
    two runs that start together get the same.  ``claim`` makes it at once, and takes the next number where another run
    was faster.  Of several processes the first one claims; the others ask it (``Trainer.log_dir``).

    Args:
        trainer: Before its fit, and before anybody has asked for its folder.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        logger: Any = trainer.logger
        self._numbered: Any = logger if isinstance(logger, CSVLogger | TensorBoardLogger) and _free(logger) else None
        self._made: list[Path] = []

    @property
    def path(self) -> Path:
        """The folder; asking for it takes all processes."""
        return Path(self._trainer.log_dir or self._trainer.default_root_dir)

    def claim(self) -> None:
        """Make the folder for this run alone, where its number was not given."""
        while self._numbered is not None and self._trainer.is_global_zero and not self._made:
            folder = Path(self._numbered.root_dir) / f"version_{self._numbered.version}"
            absent = [each for each in (folder, *folder.parents) if not each.exists()]
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
                self._made = absent
            except FileExistsError:
                self._numbered._version += 1
            except FileNotFoundError:  # another run that failed has just removed the parent
                continue

    def release(self) -> None:
        """Remove the folder that was claimed, and its parents if nothing else has come to lie there."""
        if not self._made:
            return
        folder, *parents = self._made
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # something else lies there
            for parent in parents:
                parent.rmdir()


def _free(logger: Any) -> bool:
    """Whether a logger is to choose its version, on a disk of this machine."""
    return logger._version is None and is_local(str(logger.save_dir))
