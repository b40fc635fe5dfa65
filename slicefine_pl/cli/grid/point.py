"""One run of a grid: a ``fit`` of the recipe with some settings of its own, and what is measured of it.

Answers one question: what loss has this network at this sparsity after these images?  Each run is whole: its learning
rate falls to zero at its own end, as a scaling law wants it.

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
from slicefine_pl.cli.grid.plan import Point, Row
from slicefine_pl.cli.recipe.lightning_cli import RecipeCLI
from slicefine_pl.cli.recipe.report import RunReport
from slicefine_pl.cli.scaling.model_size import without_embeddings

QUIET = {  # measured once, at the end; nothing but the row is kept
    "trainer.logger": "false",
    "trainer.callbacks": "null",
    "trainer.enable_checkpointing": "false",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "trainer.num_sanity_val_steps": "0",
    "score_before": "false",
    "ckpt_path": "null",
}


def flags_of(point: Point) -> dict[str, str]:
    """The settings in which the runs of a grid differ, and those that keep them quiet, by name of their flag."""
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


class SeenImages(Callback):
    """Count the images of all training batches."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count those of this one."""
        self.count += len(batch["images"])


class GridPoint(RecipeCLI):
    """Settings are read when it is made; ``train`` builds the network and trains it.

    Args:
        module_class: What is trained.
        datamodule_class: What it is trained on.
        config: The recipe's defaults.
        report: Told how far the run has come.
        point: Which run.
        settings: Further flags of ``fit``, for all runs.
    """

    def __init__(
        self,
        module_class: type[LightningModule],
        datamodule_class: type[LightningDataModule],
        config: Path,
        report: RunReport,
        point: Point,
        settings: Sequence[str],
    ) -> None:
        self._point = point
        self._seen = SeenImages()
        super().__init__(
            module_class,
            datamodule_class,
            save_config_callback=None,
            trainer_defaults={"callbacks": [report, self._seen]},
            parser_kwargs={"fit": {"default_config_files": [str(config)]}},
            auto_configure_optimizers=False,
            seed_everything_default=0,
            args=["fit", *settings, *(f"--{name}={value}" for name, value in flags_of(point).items())],
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only ``fit``: four parsers would take longer to build than a small network."""
        return {"fit": LightningCLI.subcommands()["fit"]}

    def instantiate_classes(self) -> None:
        """Wait for ``train``."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Wait for ``train``."""

    @property
    def settings(self) -> str:
        """All settings of the run, as YAML."""
        return str(self._parser("fit").dump(self.config.fit, skip_none=False))

    def train(self) -> Row:
        """Train, and return a row of ``runs.csv``."""
        began = time.perf_counter()
        super().instantiate_classes()
        self.before_fit()
        self.trainer.fit(self.model, self.datamodule)
        sparsity: SparsityCallback | None = self._get(self.config_init, "sparsity")
        pruned = () if sparsity is None else sparsity.masks.prunable
        return {
            **self._point._asdict(),
            "nonzero_params": nonzero_params(self.model, pruned),
            "data": self._seen.count,
            "loss": round(float(self.trainer.callback_metrics["val/loss"]), 6),
            "seconds": round(time.perf_counter() - began, 1),
        }


def nonzero_params(network: nn.Module, pruned: Collection[str]) -> int:
    """N of the scaling law: the non-zeros of the pruned matrices, and all else (norms, biases, the head).

    Tables of tokens and positions do not count.

    Args:
        network: After training.
        pruned: Names of the pruned parameters.
    """
    return sum(
        int(parameter.count_nonzero()) if name in pruned else parameter.numel()
        for name, parameter in without_embeddings(network).items()
    )
