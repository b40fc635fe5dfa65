"""Loggers that do not end a run when they cannot write, and a ``metrics.csv`` that is replaced atomically.

**Why.** A logger that cannot write, because the disk is full or a server is down, ends the run with its error.
Lightning's ``CSVLogger`` also empties ``metrics.csv`` before it writes a new header, so that a kill loses the numbers
(``lightning.fabric.loggers.csv_logs._ExperimentWriter.save``, Lightning 2.6).
"""

import csv
import io
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from slicefine_pl.files.atomic import warn_on_error, write_atomic
from slicefine_pl.files.local import is_local

WRITING_METHODS = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint")


class AtomicMetricsWriter(ExperimentWriter):
    """Replace ``metrics.csv`` at each flush; metrics that cannot be written are kept for the next flush."""

    def save(self) -> None:
        """Write the metrics."""
        path = Path(self.metrics_file_path)
        if not self.metrics:
            return
        with warn_on_error(path):
            self._record_new_keys()  # Lightning's method; it collects the columns
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, self.metrics_keys)
            writer.writeheader()
            writer.writerows(csv.DictReader(path.read_text("utf-8").splitlines()) if path.exists() else ())
            writer.writerows(self.metrics)
            write_atomic(path, text.getvalue())
            self.metrics = []

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write the hyperparameters of the module."""
        with warn_on_error(Path(self.log_dir) / self.NAME_HPARAMS_FILE):
            super().log_hparams(params)


def use_atomic_metrics(trainer: Trainer) -> None:
    """Have the loggers of a trainer write as above; their files are already open."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if type(logger) is CSVLogger and is_local(logger.save_dir):
            logger.experiment.__class__ = AtomicMetricsWriter
        else:
            methods = {name: partial(_log, logger, name) for name in WRITING_METHODS if hasattr(logger, name)}
            logger.__dict__.update(methods)


def _log(logger: Logger, name: str, *args: Any, **kwargs: Any) -> None:
    """Call a method of a logger, with a warning instead of an ``OSError``."""
    with warn_on_error(f"The log of {type(logger).__name__} in {logger.log_dir or logger.save_dir}", (OSError,)):
        getattr(type(logger), name)(logger, *args, **kwargs)
