"""The command line of every recipe: fit, validate, test, predict, from one YAML and flags.

Answers: how does a recipe become a run?  Knows no modality: a module brings ``export`` and ``example``, a data module
brings ``label_names`` and ``predict_names``, or leaves them out.
"""

import copy
import os
import pickle
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError

from slicefine_pl.callbacks import SliceFineCallback, SparsityCallback
from slicefine_pl.callbacks.neighbours import callbacks_of
from slicefine_pl.callbacks.parameter_table import use_parameter_table
from slicefine_pl.callbacks.preemption import SaveWhenPreempted
from slicefine_pl.callbacks.probe import LinearProbe
from slicefine_pl.callbacks.slice_picture import SlicePicture
from slicefine_pl.cli.checks import check_checkpoint, check_output, check_writer
from slicefine_pl.cli.report import RunReport
from slicefine_pl.strategy import FullyShardedStrategy

COMMANDS = ("fit", "validate", "test", "predict")
GRID_HELP = "This recipe has one more subcommand, grid: a law of sizes, sparsities and lengths; see grid --help."
LINKS = (("data.label_names", "model.label_names"), ("data.num_classes", "model.num_classes"))
PREPARATIONS = ("data.tokenizer", "data.processor")  # what the data module takes from the backbone's name
USER_ERRORS = (ValueError, OSError, ImportError, MisconfigurationException)  # what a command's author can mend
EARLY_ERRORS = (RuntimeError, pickle.UnpicklingError, SafetensorError)  # likewise, unless a batch was met
TERMINATED = 128 + signal.SIGTERM


def run(
    module_class: type[LightningModule],
    datamodule_class: type[LightningDataModule],
    config: Path,
    grid: Path | None = None,
) -> None:
    """Run the command line ``<recipe> fit|validate|test|predict [--config more.yaml] [--flag value]``.

    With a grid there is ``<recipe> grid`` too, which trains many networks and fits a scaling law to them.

    What goes wrong before the first training step is told in one sentence, exit code 2; ``SLICEFINE_DEBUG=1`` shows
    where it was raised.  SIGTERM saves a checkpoint after the step at hand and ends the run, exit code
    143.

    Args:
        module_class: What is trained.
        datamodule_class: What it is trained on.
        config: The recipe's defaults; a ``--config`` overlays them, and flags win last.
        grid: The networks, sparsities and lengths of the recipe's grid.
    """
    report = RunReport()
    StrategyRegistry.register("fsdp2", FullyShardedStrategy, "FSDP2, with open slices", override=True)
    try:
        if grid is not None and sys.argv[1:2] == ["grid"]:
            from slicefine_pl.cli.grid import run_grid  # not above: both build on this file
            from slicefine_pl.cli.grid_point import GridPoint

            run_grid(sys.argv[2:], grid, report, partial(GridPoint, module_class, datamodule_class, config))
            return
        RecipeCLI(
            module_class,
            datamodule_class,
            save_config_callback=SaveFitConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"callbacks": [report, SaveWhenPreempted()]},
            parser_kwargs={command: {"default_config_files": [str(config)]} for command in COMMANDS}
            | ({} if grid is None else {"epilog": GRID_HELP}),
            auto_configure_optimizers=False,
            seed_everything_default=0,
        )
    except (*USER_ERRORS, *EARLY_ERRORS) as error:
        if report.steps or os.environ.get("SLICEFINE_DEBUG") or (report.batches and isinstance(error, EARLY_ERRORS)):
            raise
        told = " ".join(str(error).split()) if isinstance(error, EARLY_ERRORS) else str(error)
        if isinstance(error, SafetensorError):
            told = f"a .safetensors file is damaged ({told}); export or download the model again."
        elif report.checkpoint and (isinstance(error, pickle.UnpicklingError) or "loading state_dict" in told):
            told = (
                f"ckpt_path={report.checkpoint!r} does not fit this module ({told[:300]}); give the settings of the "
                "run that wrote it, or another checkpoint."
            )
        print(f"error: {told}", file=sys.stderr)
        sys.exit(2)
    except SIGTERMException:  # by itself it would exit with 0, and a scheduler would take the run for finished
        sys.exit(TERMINATED)


class SaveFitConfig(SaveConfigCallback):
    """Keep the settings of a fit beside its logs; the other commands leave no files."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save when fitting."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class RecipeCLI(LightningCLI):
    """LightningCLI with early checks, links between data and module, and a closing table."""

    _before: Mapping[str, float] = {}  # scores of the pretrained network, where they were asked for

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let data decide the classes, and the backbone how data are prepared; give our callbacks sections."""
        parser.add_argument(
            "--slicefine",
            type=SliceFineCallback | None,
            default=None,
            help="How to slice, e.g. --slicefine.rank 16; null trains all weights.",
        )
        parser.add_argument(
            "--sparsity",
            type=SparsityCallback | None,
            default=None,
            help="How to prune, e.g. --sparsity.pattern 2:4; null leaves all weights.",
        )
        parser.add_argument(
            "--score_before", type=bool, default=False, help="Whether fit tests the pretrained network before training."
        )
        for source, target in LINKS:
            if hasattr(self._datamodule_class, source.removeprefix("data.")):
                parser.link_arguments(source, target, apply_on="instantiate")
        defaults = parser.get_defaults()
        for target in PREPARATIONS:
            if target in defaults:
                parser.link_arguments("model.backbone", target)
        for name in ("num_frames", "crop_size"):  # some video networks are built for one size of clips
            if f"data.{name}" in defaults:
                parser.link_arguments(f"data.{name}", f"model.{name}")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and look at the checkpoint before anything is loaded."""
        super().parse_arguments(parser, args)
        settings = self.config[self.config.subcommand]
        if settings.get("ckpt_path") not in (None, "best", "last", "hpc"):
            check_checkpoint(Path(settings.ckpt_path))
            check_writer(Path(settings.ckpt_path), self._model_class)
            report = next(each for each in self.trainer_defaults["callbacks"] if isinstance(each, RunReport))
            report.checkpoint = str(settings.ckpt_path)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Put our callbacks before the others: weight averaging copies what it finds."""
        slicefine, sparsity = (self._get(self.config_init, name) for name in ("slicefine", "sparsity"))
        given = self._get(self.config_init, "trainer").get("callbacks") or []
        others = given if isinstance(given, list) else [given]
        if slicefine is None:  # without slices there is nothing to draw
            others = [each for each in others if not isinstance(each, SlicePicture)]
        kwargs["callbacks"] = [*filter(None, (slicefine, sparsity)), *others]
        trainer: Trainer = super().instantiate_trainer(**kwargs)
        use_parameter_table(trainer, self.model)
        return trainer

    def before_instantiate_classes(self) -> None:
        """Let ``predict`` write its predictions and nothing else."""
        if self.subcommand == "predict":
            self.config.predict.trainer.enable_progress_bar = False
            self.config.predict.trainer.logger = False

    def before_fit(self) -> None:
        """Look at the output folder before any work is done."""
        size = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
        check_output(self._folder(), 4 * size)  # best and last checkpoint, export, and one being written
        settings = self.config.fit
        if self._shards and self.trainer.strategy._save_distributed_checkpoint:  # type: ignore[attr-defined]
            raise ValueError(
                "save_distributed_checkpoint=true leaves folders of shares, which this recipe cannot export; leave it"
                " out: the plain checkpoint is whole, and any number of processes goes on from it."
            )
        if settings.score_before and settings.ckpt_path is None and not settings.trainer.fast_dev_run:
            # To test a network shards it, and slices are opened before that: so a copy is tested there.
            tested = copy.deepcopy(self.model) if self._shards else self.model
            [self._before] = self.trainer.test(tested, self.datamodule, verbose=False)

    def after_fit(self) -> None:
        """Test the best checkpoint, export it, and print what was reached; a run without a step has nothing to show."""
        if self.config.fit.trainer.fast_dev_run or self.trainer.interrupted:
            return
        if self.trainer.global_step == 0:
            print("No step was trained: nothing is tested or exported.")
            return
        best = _best(getattr(self.trainer, "checkpoint_callbacks"))  # noqa: B009  (Trainer does not declare it)
        [scores] = self.trainer.test(self.model, self.datamodule, ckpt_path=best or None, verbose=False)
        place = self._folder() / "export"  # asking for the folder takes all processes
        if self.trainer.is_global_zero:
            whole = self._whole(best)
            self._print_report(scores, best, whole.export(place) if hasattr(whole, "export") else None)

    def _whole(self, best: str) -> Any:
        """The module to export.  One that processes share is in no process; its checkpoint holds a whole one."""
        if not self._shards:
            return self.model
        return cast("type[LightningModule]", self.model_class).load_from_checkpoint(best) if best else None

    @property
    def _shards(self) -> bool:
        return isinstance(self.trainer.strategy, FullyShardedStrategy)

    @property
    def _report(self) -> RunReport:
        return next(callback for callback in callbacks_of(self.trainer) if isinstance(callback, RunReport))

    def predict(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        ckpt_path: str | None,
        return_predictions: bool | None,
        weights_only: bool | None,
    ) -> None:
        """Print predictions; the module comes from the checkpoint with its own settings, where one is given."""
        if ckpt_path is not None:
            model = type(model).load_from_checkpoint(ckpt_path, weights_only=weights_only)
        self.trainer.predict(model, datamodule, return_predictions=bool(return_predictions))

    def _folder(self) -> Path:
        return Path(self.trainer.log_dir or self.trainer.default_root_dir)

    def _print_report(self, scores: Mapping[str, float], best: str, folder: Path | None) -> None:
        report = self._report
        probes = [callback for callback in callbacks_of(self.trainer) if isinstance(callback, LinearProbe)]
        total = sum(parameter.numel() for parameter in self.model.parameters())
        table = Table(show_header=False, title="Result")
        for probe in probes:
            if "test" in probe.scores:
                told = f"{probe.scores['test']:.4f}   (linear head on the frozen network, {probe.seconds:.0f} s)"
                table.add_row(f"test/{probe.metric} before", told)
        for name, value in self._before.items():
            table.add_row(f"{name} before", f"{value:.4f}   (pretrained network)")
        for name, value in scores.items():
            table.add_row(f"{name} after", f"{value:.4f}")
        share = f"{report.trained:,} at a time, of {total:,} ({report.trained / total:.2%})"
        table.add_row("trained parameters", share)
        table.add_row("training", f"{report.seconds:.0f} s, {report.steps} steps")
        table.add_row("best checkpoint", best or "none")
        table.add_row("exported model", str(folder or "none"))
        console = Console()
        console.print(table)
        if folder is not None:
            console.print("Use it without this package:\n", style="bold")
            print(self.model.example(folder))


def _best(checkpoints: Sequence[Callback]) -> str:
    """Path of the checkpoint with the best metric; without a metric, of the latest; empty if none was written."""
    paths = [(getattr(each, "monitor", None) is None, getattr(each, "best_model_path", "")) for each in checkpoints]
    # A resumed run may remember a file that was moved since.
    return min((entry for entry in paths if entry[1] and Path(entry[1]).exists()), default=(True, ""))[1]
