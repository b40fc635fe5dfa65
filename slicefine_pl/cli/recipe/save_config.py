"""The ``config.yaml`` of a fit."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from slicefine_pl.files.atomic import write_atomic
from slicefine_pl.files.local import is_local


class SaveFitConfig(SaveConfigCallback):
    """Save the settings of a fit in its log folder; other subcommands do not save their settings."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the settings when fitting starts."""
        if stage != "fit":
            return
        self._folder = str(trainer.log_dir)  # a collective call: all processes read it
        self.save_to_log_dir = not is_local(self._folder)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file atomically on a local disk; Lightning writes it elsewhere."""
        if not self.save_to_log_dir:
            write_atomic(Path(self._folder) / self.config_filename, self.parser.dump(self.config, skip_none=False))
