"""Logs never cost a run, and ``metrics.csv`` of Lightning's ``CSVLogger`` is written whole.

**Why.** A logger that cannot write, as the disk is full or a server is gone, ends the run with its error.  The writer
of ``metrics.csv`` also empties the file before it writes a new header, so that a kill loses the numbers
(``lightning.fabric.loggers.csv_logs._ExperimentWriter.save``, Lightning 2.6).
"""

import csv
import io
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from slicefine_pl.files.atomic import warn_on_error, write_atomic

WRITING = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint")


class AtomicMetricsWriter(ExperimentWriter):
    """Replace ``metrics.csv`` at each flush; what cannot be written is kept in memory for the next one."""

    def save(self) -> None:
        """Write the metrics."""
        path = Path(self.metrics_file_path)
        if not self.metrics:
            return
        with warn_on_error(path):
            self._record_new_keys()
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, self.metrics_keys)
            writer.writeheader()
            writer.writerows(csv.DictReader(path.read_text("utf-8").splitlines()) if path.exists() else ())
            writer.writerows(self.metrics)
            write_atomic(path, text.getvalue())
            self.metrics = []

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write the settings of the module."""
        with warn_on_error(Path(self.log_dir) / self.NAME_HPARAMS_FILE):
            super().log_hparams(params)


def use_atomic_metrics(trainer: Trainer) -> None:
    """Have the loggers of a trainer write that way; their files have been opened by now."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if type(logger) is CSVLogger and _is_local_file_protocol(logger.save_dir):
            logger.experiment.__class__ = AtomicMetricsWriter
        else:
            logger.__dict__.update({name: partial(_log, logger, name) for name in WRITING if hasattr(logger, name)})


def _log(logger: Logger, name: str, *args: Any, **kwargs: Any) -> None:
    """Call a method of a logger; errors of disks and connections become a warning."""
    with warn_on_error(f"The log of {type(logger).__name__} in {logger.log_dir or logger.save_dir}", (OSError,)):
        getattr(type(logger), name)(logger, *args, **kwargs)
