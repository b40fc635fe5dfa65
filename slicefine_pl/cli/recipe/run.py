"""The command line of every recipe: fit, validate, test and predict, from one YAML file and flags.

It works for every kind of data. A module may have ``export`` and ``example``, a data module ``label_names`` and
``predict_names``.
"""

import signal
import sys
from functools import partial
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import SIGTERMException

from slicefine_pl.callbacks.preemption import PreemptionCheckpoint
from slicefine_pl.callbacks.support.best_checkpoint import CopyBestCheckpoint
from slicefine_pl.cli.recipe.errors import SETUP_ERRORS, sentence
from slicefine_pl.cli.recipe.output import recipe_output
from slicefine_pl.cli.recipe.parser import RecipeParser
from slicefine_pl.cli.recipe.prediction_printer import PredictionPrinter
from slicefine_pl.cli.recipe.recipe_cli import RecipeCLI
from slicefine_pl.cli.recipe.resume_hint import ResumeHint
from slicefine_pl.cli.recipe.run_report import RunReport
from slicefine_pl.cli.recipe.save_config import SaveFitConfig
from slicefine_pl.strategy import FullyShardedStrategy

COMMANDS = ("fit", "validate", "test", "predict")
GRID_HELP = "This recipe also has the subcommand grid, which fits a scaling law to many runs; see grid --help."
TERMINATED = 128 + signal.SIGTERM


def run(
    module_class: type[LightningModule],
    datamodule_class: type[LightningDataModule],
    config: Path,
    grid: Path | None = None,
) -> None:
    """Run the command line ``<recipe> fit|validate|test|predict [--config more.yaml] [--flag value]``.

    With a grid there is also ``<recipe> grid``, which trains many networks and fits a scaling law to them.

    **Order of settings.** The recipe's defaults come first, then every ``--config`` in order, then the flags, wherever
    they are on the command line; later settings override earlier ones. With ``--ckpt_path``, fit, validate and test
    read the ``config.yaml`` of the run that wrote the checkpoint before any other ``--config``, so that its flags need
    not be repeated. The settings of the module come from the checkpoint, and flags override them.

    **Folder.** Every run writes to a new folder, even when resuming a run in a named folder. A fit that fails before
    its first step leaves no folder.

    **Errors.** An error before the first training step, or because a disk is full, is reported in one sentence, with
    exit code 2; ``SLICEFINE_DEBUG=1`` shows its traceback. SIGTERM saves a checkpoint after the current step and ends
    the run with exit code 143.

    Args:
        module_class: Class of the module that is trained.
        datamodule_class: Class of the data module.
        config: YAML file with the recipe's defaults.
        grid: YAML file with the networks, sparsities and lengths of the recipe's grid.
    """
    with recipe_output():
        _run(module_class, datamodule_class, config, grid)


def _run(
    module_class: type[LightningModule],
    datamodule_class: type[LightningDataModule],
    config: Path,
    grid: Path | None,
) -> None:
    report = RunReport()
    StrategyRegistry.register("fsdp2", FullyShardedStrategy, "FSDP2, with open slices", override=True)
    try:
        if grid is not None and sys.argv[1:2] == ["grid"]:
            from slicefine_pl.cli.grid.command import run_grid
            from slicefine_pl.cli.grid.point_cli import PointCLI

            run_grid(sys.argv[2:], grid, report, partial(PointCLI, module_class, datamodule_class, config))
            return
        callbacks = [report, PreemptionCheckpoint(), CopyBestCheckpoint(), ResumeHint(), PredictionPrinter()]
        RecipeCLI(
            module_class,
            datamodule_class,
            save_config_callback=SaveFitConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"callbacks": callbacks},
            parser_kwargs={command: {"default_config_files": [str(config)]} for command in COMMANDS}
            | ({} if grid is None else {"epilog": GRID_HELP}),
            parser_class=RecipeParser,
            auto_configure_optimizers=False,
            seed_everything_default=0,
        )
    except SETUP_ERRORS as error:
        if (message := sentence(error, report)) is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    except SIGTERMException:  # Lightning would exit with 0, and a scheduler would regard the run as finished
        sys.exit(TERMINATED)
