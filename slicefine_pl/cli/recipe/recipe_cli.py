"""What happens in the subcommands fit, validate, test and predict of a recipe."""

import copy
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from slicefine_pl.callbacks.slice_map import SliceMap
from slicefine_pl.callbacks.slicefine import slicefine_of
from slicefine_pl.callbacks.support.parameter_table import use_parameter_table
from slicefine_pl.cli.recipe.adapter import check_adapter, write_adapter
from slicefine_pl.cli.recipe.best_checkpoint import best_path, monitor_first_metric
from slicefine_pl.cli.recipe.preflight import check_output_folder
from slicefine_pl.cli.recipe.recipe_arguments import RecipeArguments
from slicefine_pl.cli.recipe.result import print_result
from slicefine_pl.cli.recipe.run_folder import RunFolder
from slicefine_pl.cli.recipe.run_report import RunReport
from slicefine_pl.files.atomic import warn_on_error
from slicefine_pl.strategy import FullyShardedStrategy
from slicefine_pl.trainer_callbacks import trainer_callbacks

FOLDER_SETTING = "--trainer.logger.save_dir, or --trainer.default_root_dir if there is no logger,"


class RecipeCLI(RecipeArguments):
    """LightningCLI that checks before it trains, then tests, exports, and prints a table."""

    def instantiate_classes(self) -> None:
        """Create model, data and trainer, and note the run's folder before the trainer is used."""
        super().instantiate_classes()
        if self._slices is not None:
            self.model = type(self.model).from_slices(self._slices, **self._given)
        self._folder = RunFolder(self.trainer)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Put our callbacks before the others, because weight averaging copies the module as it finds it."""
        slicefine, sparsity = (self._get(self.config_init, name) for name in ("slicefine", "sparsity"))
        given = self._get(self.config_init, "trainer").get("callbacks") or []
        others = given if isinstance(given, list) else [given]
        if slicefine is None:  # SliceMap needs slices
            others = [each for each in others if not isinstance(each, SliceMap)]
        kwargs["callbacks"] = [*filter(None, (slicefine, sparsity)), *others]
        try:
            trainer: Trainer = super().instantiate_trainer(**kwargs)
        except TypeError as error:  # with this the trainer refuses a value, such as devices=x
            raise ValueError(str(error)) from error
        use_parameter_table(trainer, self.model)
        if (metric := monitor_first_metric(trainer, self.model)) and self.subcommand == "fit":
            rank_zero_info(f"{metric} chooses the best checkpoint, because this module has no accuracy.")
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Run; if a fit fails before its first step, remove its folder."""
        try:
            super()._run_subcommand(subcommand)
        except BaseException:
            if subcommand == "fit" and not self._report.steps:
                self._folder.release()
            raise

    def before_fit(self) -> None:
        """Check and claim the output folder; score the pretrained network if requested."""
        if self._exports_adapter:
            slicefine, sparsity = (self._get(self.config_init, name) for name in ("slicefine", "sparsity"))
            pruned, other_base = sparsity is not None, self._slices is not None
            check_adapter(self.model, slicefine, pruned=pruned, sharded=self._sharded, other_base=other_base)
        size = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
        needed = 4 * size  # best and last checkpoint, export, and one being written
        check_output_folder(self._folder.path, needed, FOLDER_SETTING)
        self._folder.claim()
        settings = self.config.fit
        if self._sharded and self.trainer.strategy._save_distributed_checkpoint:  # type: ignore[attr-defined]
            raise ValueError(
                "save_distributed_checkpoint=true writes folders of shards, which this recipe cannot export; leave it"
                " out. The plain checkpoint is complete, and any number of processes can resume from it."
            )
        if settings.score_before and settings.ckpt_path is None and not settings.trainer.fast_dev_run:
            self._report.scores_before = self._score_before()

    def _score_before(self) -> dict[str, float]:
        # Testing a model shards it, but slices have to be opened before that: so a copy is tested.
        model: Any = copy.deepcopy(self.model) if self._sharded else self.model
        if hasattr(model, "record_input"):  # an export is tested with the input of this fit, not of its own training
            model.record_input(self.datamodule)
        [scores] = self._evaluate(model, self.datamodule, verbose=False)
        return dict(scores)

    def after_fit(self) -> None:
        """Test the best checkpoint, export it, and print the closing table."""
        if self.config.fit.trainer.fast_dev_run or self.trainer.interrupted:
            return
        if self.trainer.global_step == 0:
            print("No step was trained: nothing is tested or exported.")
            return
        if not self._report.steps:  # a run that was stopped before its export can go on from here
            print(
                f"Nothing is left to train: {_limit_reached(self.trainer)} The checkpoint is tested and exported again."
            )
        best = best_path(self.trainer)
        [scores] = self._evaluate(self.model, self.datamodule, ckpt_path=best or None, verbose=False)
        folder = self._folder.path / "export"  # a collective call: all processes read it
        if self.trainer.is_global_zero:
            exported, slices, adapter = None, None, None
            try:
                if not self._exports_adapter:
                    exported = self._export(best, folder)
                slices = self._save_slices(self._folder.path / "slices.safetensors")
                if self._exports_adapter:
                    adapter = write_adapter(self.model, slices, self._folder.path / "lora")
            finally:  # scores and checkpoints are shown even if the export fails
                print_result(self.trainer, self.model, scores, best, exported, slices, adapter)

    def _save_slices(self, path: Path) -> Path | None:
        """Write what the slices learned; ``None`` if there are none, or if a file cannot contain it."""
        callback = slicefine_of(self.trainer)
        if callback is None or self._sharded or self._get(self.config_init, "sparsity") is not None:
            return None
        path.unlink(missing_ok=True)  # of an earlier run with the same version
        with warn_on_error(path, (OSError, ValueError)):  # frozen weights changed: averages round them, for example
            callback.save(path, getattr(self.model, "backbone", ""))
            return path
        return None

    def _export(self, best: str, folder: Path) -> Path | None:
        """Export the trained module; ``None`` if it has no ``export``."""
        model = self._complete_module(best)
        if not hasattr(model, "export"):
            return None
        try:
            return cast("Path", model.export(folder))
        except OSError as error:
            if best:
                call = f"{type(self.model).__name__}.load_from_checkpoint({best!r}).export('FOLDER')"
                error.add_note(f"The trained model is in the checkpoint; in Python {call} exports it.")
            raise

    def _complete_module(self, best: str) -> Any:
        """The module to export. With sharded weights no process has all of them; the checkpoint has."""
        if not self._sharded:
            return self.model
        return cast("type[LightningModule]", self.model_class).load_from_checkpoint(best) if best else None

    @property
    def _evaluate(self) -> Any:
        """The trainer's ``test``, or ``validate`` if the data have no test split, so that scores keep their names."""
        return self.trainer.test if getattr(self.datamodule, "has_test", True) else self.trainer.validate

    @property
    def _exports_adapter(self) -> bool:
        return bool(self.config.fit.export == "lora")

    @property
    def _sharded(self) -> bool:
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
        """Print predictions; with a checkpoint, the module is created with the checkpoint's settings."""
        if ckpt_path is not None:
            model = type(model).load_from_checkpoint(ckpt_path, weights_only=weights_only)
        self.trainer.predict(model, datamodule, return_predictions=bool(return_predictions))


def _limit_reached(trainer: Trainer) -> str:
    """The limit that a resumed run has reached before its first step, and what to do."""
    if 0 <= trainer.max_steps <= trainer.global_step:
        return f"max_steps={trainer.max_steps} is reached; to train on, raise --trainer.max_steps."
    reached = f"max_epochs={trainer.max_epochs} is reached"
    return f"{reached}; to train on, add --trainer.max_epochs {(trainer.max_epochs or 0) + 1}."
