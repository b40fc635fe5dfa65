"""``metrics.csv`` of Lightning's ``CSVLogger``, written whole, and never worth a run.

**Why.** Lightning's writer empties the file before it writes a new header, so that a kill loses the numbers; and its
errors end the run (``lightning.fabric.loggers.csv_logs._ExperimentWriter.save``, Lightning 2.6).
"""

import csv
import io
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from slicefine_pl.files import only_informs, write_whole


class WholeMetricsWriter(ExperimentWriter):
    """Replace ``metrics.csv`` at each flush; what cannot be written is kept in memory for the next one."""

    def save(self) -> None:
        """Write the metrics."""
        path = Path(self.metrics_file_path)
        if not self.metrics:
            return
        with only_informs(path):
            self._record_new_keys()
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, self.metrics_keys)
            writer.writeheader()
            writer.writerows(csv.DictReader(path.read_text("utf-8").splitlines()) if path.exists() else ())
            writer.writerows(self.metrics)
            write_whole(path, text.getvalue())
            self.metrics = []

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write the settings of the module."""
        with only_informs(Path(self.log_dir) / self.NAME_HPARAMS_FILE):
            super().log_hparams(params)


def keep_metrics_whole(trainer: Trainer) -> None:
    """Have the CSV loggers of a trainer write that way; their files have been opened by now."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if type(logger) is CSVLogger and _is_local_file_protocol(logger.save_dir):
            logger.experiment.__class__ = WholeMetricsWriter
