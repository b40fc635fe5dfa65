"""LightningCLI as recipes use it: early checks, links between data and module, and a closing table.

Answers one question: what happens in each of fit, validate, test and predict?
"""

import copy
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info

from slicefine_pl.callbacks import SliceFineCallback, SparsityCallback
from slicefine_pl.callbacks.slice_map import SliceMap
from slicefine_pl.callbacks.support.other_callbacks import trainer_callbacks
from slicefine_pl.callbacks.support.parameter_table import use_parameter_table
from slicefine_pl.cli.recipe.best_score import follow_score
from slicefine_pl.cli.recipe.preflight import check_checkpoint, check_output, check_writer
from slicefine_pl.cli.recipe.report import RunReport
from slicefine_pl.cli.recipe.result import print_result
from slicefine_pl.cli.recipe.run_folder import RunFolder
from slicefine_pl.cli.recipe.settings import (
    configs_first,
    forget_version,
    names_given,
    names_version,
    settings_of_run,
    value_of,
)
from slicefine_pl.cli.recipe.text_settings import TextSettings
from slicefine_pl.files.atomic import write_atomic
from slicefine_pl.files.local import is_local
from slicefine_pl.inputs import stored_record
from slicefine_pl.strategy import FullyShardedStrategy

LINKS = tuple((f"data.{name}", f"model.{name}") for name in ("label_names", "num_classes", "num_frames", "crop_size"))
PREPARATIONS = ("data.tokenizer", "data.processor")  # what the data module takes from the backbone's name


class SaveFitConfig(SaveConfigCallback):
    """Keep the settings of a fit beside its logs; the other commands leave no files."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save when fitting."""
        if stage != "fit":
            return
        self._folder = str(trainer.log_dir)  # asking for it takes all processes
        self.save_to_log_dir = not is_local(self._folder)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file whole, where Lightning leaves it to us."""
        if not self.save_to_log_dir:
            write_atomic(Path(self._folder) / self.config_filename, self.parser.dump(self.config, skip_none=False))


class RecipeCLI(LightningCLI):
    """LightningCLI with early checks, links between data and module, and a closing table."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Say in the help who wins."""
        parser = super().init_parser(**kwargs)
        parser._option_string_actions[
            "--config"
        ].help = (
            "YAML file of settings. Flags win over files, wherever they stand; a later file wins over an earlier one."
        )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let data decide the classes, and the backbone how data are prepared; give our callbacks sections."""
        self._texts.install()
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

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Look at the checkpoint before anything is loaded; parse files first and flags last."""
        given = self._texts.rewritten(sys.argv[1:] if args is None else cast("list[str]", args))
        words = configs_first(given)
        self._check_checkpoint(resumed := value_of("--ckpt_path", words))
        saved = settings_of_run(Path(resumed)) if resumed and words[0] in ("fit", "validate", "test") else None
        if saved:
            verb = "Going on with" if words[0] == "fit" else "Using"
            rank_zero_info(f"{verb} the settings of {saved}; what the command line says wins.")
            words[1:1] = ["--config", str(saved)]
        self._flags = words
        self.config = parser.parse_args(words)
        settings = self.config[self.config.subcommand]
        if (saved or self.config.subcommand != "fit") and not names_version(words):
            forget_version(settings.trainer.logger)
        if (path := settings.get("ckpt_path")) != resumed:
            self._check_checkpoint(path)

    def _parse_ckpt_path(self) -> None:
        """Let flags win over the settings that a checkpoint brings, where Lightning drops them."""
        command = self.config.subcommand
        before = self.config[command].model
        given = {name: before[name] for name in names_given("model", self._flags) if name in before}
        super()._parse_ckpt_path()
        if given:
            self.config = self.parser.parse_object({command: {"model": given}}, self.config)

    def _check_checkpoint(self, path: str | None) -> None:
        if path not in (None, "best", "last", "hpc", "null"):
            check_checkpoint(Path(path))
            check_writer(Path(path), self._model_class)
            report = next(each for each in self.trainer_defaults["callbacks"] if isinstance(each, RunReport))
            report.checkpoint = path

    def instantiate_classes(self) -> None:
        """Make model, data and trainer, and ask where the run will write before anybody else does."""
        super().instantiate_classes()
        self._place = RunFolder(self.trainer)

    @cached_property
    def _texts(self) -> TextSettings:
        return TextSettings.of(model=self._model_class, data=self._datamodule_class)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Put our callbacks before the others: weight averaging copies what it finds."""
        slicefine, sparsity = (self._get(self.config_init, name) for name in ("slicefine", "sparsity"))
        given = self._get(self.config_init, "trainer").get("callbacks") or []
        others = given if isinstance(given, list) else [given]
        if slicefine is None:  # without slices there is nothing to draw
            others = [each for each in others if not isinstance(each, SliceMap)]
        kwargs["callbacks"] = [*filter(None, (slicefine, sparsity)), *others]
        trainer: Trainer = super().instantiate_trainer(**kwargs)
        use_parameter_table(trainer, self.model)
        if (score := follow_score(trainer, self.model)) and self.subcommand == "fit":
            rank_zero_info(f"{score} chooses the best checkpoint, as this module has no accuracy.")
        return trainer

    def before_instantiate_classes(self) -> None:
        """Let data follow the checkpoint, if it says what training saw; let ``predict`` write predictions alone."""
        settings = self.config[self.subcommand]
        if "processor" in settings.data and settings.ckpt_path and stored_record(str(settings.ckpt_path)):
            settings.data.processor = str(settings.ckpt_path)
        if self.subcommand == "predict":
            self.config.predict.trainer.enable_progress_bar = False
            self.config.predict.trainer.logger = False

    def _run_subcommand(self, subcommand: str) -> None:
        """Run; a fit that fails before its first step leaves no folder."""
        try:
            super()._run_subcommand(subcommand)
        except BaseException:
            if subcommand == "fit" and not self._report.steps:
                self._place.release()
            raise

    def before_fit(self) -> None:
        """Look at the output folder before any work is done."""
        size = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
        check_output(self._place.path, 4 * size)  # best and last checkpoint, export, and one being written
        self._place.claim()
        settings = self.config.fit
        if self._shards and self.trainer.strategy._save_distributed_checkpoint:  # type: ignore[attr-defined]
            raise ValueError(
                "save_distributed_checkpoint=true leaves folders of shares, which this recipe cannot export; leave it"
                " out: the plain checkpoint is whole, and any number of processes goes on from it."
            )
        if settings.score_before and settings.ckpt_path is None and not settings.trainer.fast_dev_run:
            # To test a network shards it, and slices are opened before that: so a copy is tested there.
            tested = copy.deepcopy(self.model) if self._shards else self.model
            if hasattr(tested, "record_input"):  # test an export with the input of this fit, not of its own
                tested.record_input(self.datamodule)
            [scores] = self._evaluate(tested, self.datamodule, verbose=False)
            self._report.before = dict(scores)

    def after_fit(self) -> None:
        """Test the best checkpoint, export it, and print what was reached; a run without a step has nothing to show."""
        if self.config.fit.trainer.fast_dev_run or self.trainer.interrupted:
            return
        if self.trainer.global_step == 0:
            print("No step was trained: nothing is tested or exported.")
            return
        best = _best(getattr(self.trainer, "checkpoint_callbacks"))  # noqa: B009  (Trainer does not declare it)
        [scores] = self._evaluate(self.model, self.datamodule, ckpt_path=best or None, verbose=False)
        place = self._place.path / "export"  # asking for the folder takes all processes
        if self.trainer.is_global_zero:
            exported = None
            try:
                if hasattr(whole := self._whole(best), "export"):
                    exported = whole.export(place)
            except OSError as error:
                if best:
                    call = f"{type(self.model).__name__}.load_from_checkpoint({best!r}).export('FOLDER')"
                    error.add_note(f"The trained model is in the checkpoint; in Python {call} exports it.")
                raise
            finally:  # an export that fails costs neither scores nor checkpoints
                print_result(self.trainer, self.model, scores, best, exported)

    @property
    def _evaluate(self) -> Any:
        """The trainer's ``test``, or ``validate`` where the data have no test split: scores keep their true names."""
        return self.trainer.test if getattr(self.datamodule, "has_test", True) else self.trainer.validate

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
        return next(callback for callback in trainer_callbacks(self.trainer) if isinstance(callback, RunReport))

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


def _best(checkpoints: Sequence[Callback]) -> str:
    """Path of the checkpoint with the best metric; without a metric, of the latest; empty if none was written."""
    paths = [(getattr(each, "monitor", None) is None, getattr(each, "best_model_path", "")) for each in checkpoints]
    # A resumed run may remember a file that was moved since.
    return min((entry for entry in paths if entry[1] and Path(entry[1]).exists()), default=(True, ""))[1]
