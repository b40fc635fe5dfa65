"""One run of a grid: a ``fit`` of the recipe with settings of its own.

Every run is complete: its learning rate decays to zero at its own end, as a scaling law requires.

Units:  single non-zero parameters · images · loss in nats · seconds
"""

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import nn

from slicefine_pl.callbacks import SparsityCallback
from slicefine_pl.cli.grid.finished_runs import RunRecord
from slicefine_pl.cli.grid.plan import GridPoint
from slicefine_pl.cli.recipe.parser import RecipeParser
from slicefine_pl.cli.recipe.recipe_cli import RecipeCLI
from slicefine_pl.cli.recipe.run_report import RunReport
from slicefine_pl.cli.scaling.model_size import without_embeddings

QUIET = {  # validated once, at the end; nothing is kept but the record
    "trainer.logger": "false",
    "trainer.callbacks": "null",
    "trainer.enable_checkpointing": "false",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "trainer.num_sanity_val_steps": "0",
    "score_before": "false",
    "ckpt_path": "null",
}


def point_settings(point: GridPoint) -> dict[str, str]:
    """Return the settings that the grid sets for a run, by the name of their flag."""
    own = {
        "model.backbone": point.backbone,
        "model.lr": str(point.lr),
        "trainer.max_epochs": str(point.epochs),
        "trainer.check_val_every_n_epoch": str(point.epochs),
        "seed_everything": str(point.seed),
        "data.seed": str(point.seed),
    }
    pruned = {"sparsity.sparsity": str(point.sparsity)} if point.sparsity else {"sparsity": "null"}
    return own | QUIET | pruned


class ImageCounter(Callback):
    """Count the images of all training batches."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add the images of a batch."""
        self.count += len(batch["images"])


class PointCLI(RecipeCLI):
    """The command line of one run. Creating it parses the settings; ``train`` builds the network and trains it.

    Args:
        module_class: Class of the module.
        datamodule_class: Class of the data module.
        config: YAML file with the recipe's defaults.
        report: Records how far the run came.
        point: The run.
        flags: Further flags of ``fit``, for all runs.
    """

    def __init__(
        self,
        module_class: type[LightningModule],
        datamodule_class: type[LightningDataModule],
        config: Path,
        report: RunReport,
        point: GridPoint,
        flags: Sequence[str],
    ) -> None:
        self._point = point
        self._images = ImageCounter()
        super().__init__(
            module_class,
            datamodule_class,
            save_config_callback=None,
            trainer_defaults={"callbacks": [report, self._images]},
            parser_kwargs={"fit": {"default_config_files": [str(config)]}},
            parser_class=RecipeParser,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            args=["fit", *flags, *(f"--{name}={value}" for name, value in point_settings(point).items())],
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only ``fit``: building the parsers of all subcommands takes longer than building a small network."""
        return {"fit": LightningCLI.subcommands()["fit"]}

    def instantiate_classes(self) -> None:
        """Do nothing until ``train``."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Do nothing until ``train``."""

    @property
    def settings(self) -> str:
        """All settings of the run, as YAML."""
        return str(self._parser("fit").dump(self.config.fit, skip_none=False))

    def train(self) -> RunRecord:
        """Train, and return the record of the run."""
        began = time.perf_counter()
        super().instantiate_classes()
        self.before_fit()
        self.trainer.fit(self.model, self.datamodule)
        sparsity: SparsityCallback | None = self._get(self.config_init, "sparsity")
        pruned = () if sparsity is None else sparsity.masks.prunable
        return {
            **self._point._asdict(),
            "nonzero_params": count_nonzero(self.model, pruned),
            "data": self._images.count,
            "loss": round(float(self.trainer.callback_metrics["val/loss"]), 6),
            "seconds": round(time.perf_counter() - began, 1),
        }


def count_nonzero(network: nn.Module, pruned: Collection[str]) -> int:
    """Count N of the scaling law: the non-zeros of pruned matrices, and all other parameters.

    Token and position embeddings do not count.

    Args:
        network: Network after training.
        pruned: Names of the pruned parameters.
    """
    return sum(
        int(parameter.count_nonzero()) if name in pruned else parameter.numel()
        for name, parameter in without_embeddings(network).items()
    )
