"""The command line of every recipe: fit, validate, test, predict, from one YAML and flags.

Answers: how does a recipe become a run?  Knows no modality: a module brings ``export`` and ``example``, a data module
brings ``label_names`` and ``predict_names``, or leaves them out.
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
from slicefine_pl.cli.recipe.help import RecipeParser
from slicefine_pl.cli.recipe.interruption import ResumeHint
from slicefine_pl.cli.recipe.lightning_cli import RecipeCLI, SaveFitConfig
from slicefine_pl.cli.recipe.output import recipe_output
from slicefine_pl.cli.recipe.report import RunReport
from slicefine_pl.strategy import FullyShardedStrategy

COMMANDS = ("fit", "validate", "test", "predict")
GRID_HELP = "This recipe has one more subcommand, grid: a law of sizes, sparsities and lengths; see grid --help."
TERMINATED = 128 + signal.SIGTERM


def run(
    module_class: type[LightningModule],
    datamodule_class: type[LightningDataModule],
    config: Path,
    grid: Path | None = None,
) -> None:
    """Run the command line ``<recipe> fit|validate|test|predict [--config more.yaml] [--flag value]``.

    With a grid there is ``<recipe> grid`` too, which trains many networks and fits a scaling law to them.

    The recipe's defaults are read first, then every ``--config`` in its order, then the flags, wherever they stand on
    the command line: a flag wins over a file, and a later file or flag over an earlier one.  With ``--ckpt_path``, fit,
    validate and test read the ``config.yaml`` of the run that wrote it before any other ``--config``, so that no flag
    has to be repeated.  The settings of the module come from the checkpoint, in every command; flags win.  They write
    to a new folder, also where the run's own had a name.

    What goes wrong before the first training step, or because a disk is full, is reported in one sentence, exit code 2;
    ``SLICEFINE_DEBUG=1`` shows where it was raised.  A fit that fails before its first step leaves no folder.  SIGTERM
    saves a checkpoint after the step at hand and ends the run, exit code 143.

    Args:
        module_class: What is trained.
        datamodule_class: What it is trained on.
        config: The recipe's defaults.
        grid: The networks, sparsities and lengths of the recipe's grid.
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
            from slicefine_pl.cli.grid.point import GridPoint

            run_grid(sys.argv[2:], grid, report, partial(GridPoint, module_class, datamodule_class, config))
            return
        RecipeCLI(
            module_class,
            datamodule_class,
            save_config_callback=SaveFitConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"callbacks": [report, PreemptionCheckpoint(), CopyBestCheckpoint(), ResumeHint()]},
            parser_kwargs={command: {"default_config_files": [str(config)]} for command in COMMANDS}
            | ({} if grid is None else {"epilog": GRID_HELP}),
            parser_class=RecipeParser,
            auto_configure_optimizers=False,
            seed_everything_default=0,
        )
    except SETUP_ERRORS as error:
        if (told := sentence(error, report)) is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        sys.exit(2)
    except SIGTERMException:  # by itself it would exit with 0, and a scheduler would take the run for finished
        sys.exit(TERMINATED)
