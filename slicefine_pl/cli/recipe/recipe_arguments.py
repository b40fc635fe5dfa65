"""The arguments of a recipe: sections, links between data and module, files before flags, and a given checkpoint."""

import sys
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from slicefine_pl.callbacks import SliceFineCallback, SparsityCallback
from slicefine_pl.cli.recipe.adapter import ExportKind
from slicefine_pl.cli.recipe.command_line import (
    clear_version,
    flag_value,
    gives_version,
    move_configs_first,
    saved_config,
    settings_given,
)
from slicefine_pl.cli.recipe.preflight import check_checkpoint, check_module_class
from slicefine_pl.cli.recipe.run_report import RunReport
from slicefine_pl.cli.recipe.string_settings import StringSettings
from slicefine_pl.inputs import stored_record

# What the module takes from the data, and what the data module takes from the name of the backbone.
LINKS = tuple((f"data.{name}", f"model.{name}") for name in ("label_names", "num_classes", "num_frames", "crop_size"))
BACKBONE_LINKS = ("data.tokenizer", "data.processor")
KEYWORDS = ("best", "last", "hpc", "null")  # values of --ckpt_path that are not paths


class RecipeArguments(LightningCLI):
    """LightningCLI with the arguments of recipes; see :func:`slicefine_pl.cli.recipe.run.run` for their order."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Explain in the help which settings win."""
        parser = super().init_parser(**kwargs)
        parser._option_string_actions[
            "--config"
        ].help = (
            "YAML file of settings. Flags override files, wherever they are; a later file overrides an earlier one."
        )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the sections of slices and pruning, and link module, data and backbone."""
        self._strings.install()
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
            help="How to prune, e.g. --sparsity.pattern 2:4; null prunes nothing.",
        )
        parser.add_argument(
            "--score_before", type=bool, default=False, help="Whether fit tests the pretrained network before training."
        )
        parser.add_argument(
            "--export",
            type=ExportKind,
            default="model",
            help="What fit writes beside the slice file: the trained model, or a LoRA adapter for peft.",
        )
        if hasattr(self._model_class, "from_slices"):
            parser.add_argument(
                "--model.slices",
                type=str | None,
                default=None,
                help="Slice file of a fit: use the network that it trained, with its settings.",
            )
        for source, target in LINKS:
            if hasattr(self._datamodule_class, source.removeprefix("data.")):
                parser.link_arguments(source, target, apply_on="instantiate")
        defaults = parser.get_defaults()
        for target in BACKBONE_LINKS:
            if target in defaults:
                parser.link_arguments("model.backbone", target)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Check a given checkpoint, then parse its run's settings, other files, and flags, in this order."""
        given = self._strings.rewritten(sys.argv[1:] if args is None else cast("list[str]", args))
        words = move_configs_first(given)
        self._check_checkpoint(resumed := flag_value("--ckpt_path", words))
        saved = saved_config(Path(resumed)) if resumed and words[0] in ("fit", "validate", "test") else None
        if saved:
            verb = "Continuing with" if words[0] == "fit" else "Using"
            rank_zero_info(f"{verb} the settings of {saved}; the command line overrides them.")
            words[1:1] = ["--config", str(saved)]
        self._words = words
        self.config = parser.parse_args(words)
        settings = self.config[self.config.subcommand]
        if (saved or self.config.subcommand != "fit") and not gives_version(words):
            clear_version(settings.trainer.logger)
        if (path := settings.get("ckpt_path")) != resumed:
            self._check_checkpoint(path)

    def _parse_ckpt_path(self) -> None:
        """Let flags override the settings that a checkpoint contains; Lightning ignores the flags."""
        command = self.config.subcommand
        before = self.config[command].get("model", {})  # a class without arguments has no section
        self._slices = before.get("slices")
        given = {name: before[name] for name in settings_given("model", self._words) if name in before}
        given.pop("slices", None)
        self._given = given
        super()._parse_ckpt_path()
        if self._slices is not None:  # before parsing ends, because data takes the backbone's name from here
            saved = cast("Any", self._model_class).settings_of_slices(self._slices)
            self.config = self.parser.parse_object({command: {"model": saved}}, self.config)
        if given:
            self.config = self.parser.parse_object({command: {"model": given}}, self.config)

    def before_instantiate_classes(self) -> None:
        """Prepare data as for the checkpoint's training, if it is recorded; let ``predict`` print predictions only."""
        settings = self.config[self.subcommand]
        settings.get("model", {}).pop("slices", None)  # no argument of the module
        if "processor" in settings.get("data", {}) and settings.ckpt_path and stored_record(str(settings.ckpt_path)):
            settings.data.processor = str(settings.ckpt_path)
        if self.subcommand == "predict":
            self.config.predict.trainer.enable_progress_bar = False
            self.config.predict.trainer.logger = False

    def _check_checkpoint(self, path: str | None) -> None:
        if path is not None and path not in KEYWORDS:
            check_checkpoint(Path(path))
            check_module_class(Path(path), self._model_class)
            report = next(each for each in self.trainer_defaults["callbacks"] if isinstance(each, RunReport))
            report.checkpoint = path

    @cached_property
    def _strings(self) -> StringSettings:
        return StringSettings.of(model=self._model_class, data=self._datamodule_class)
