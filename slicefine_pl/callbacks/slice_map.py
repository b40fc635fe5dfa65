"""The callback that draws which lines of each matrix slices have trained, and by how much they changed."""

from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer

from slicefine_pl.analysis.plots import save_figure
from slicefine_pl.callbacks.slicefine import SliceFineCallback, slicefine_of
from slicefine_pl.callbacks.support.other_callbacks import check_before_weight_averaging
from slicefine_pl.callbacks.support.plotting import can_plot
from slicefine_pl.callbacks.support.slice_map_plot import plot_map, write_updates
from slicefine_pl.files.atomic import warn_on_error
from slicefine_pl.slicing import UpdateTracker


class SliceMap(Callback):
    """Draw which lines of each matrix a SliceFine run has trained, and how much they changed.

    ``slices.png`` has one row for each sliced matrix, over the relative position along the sliced axis. Columns and
    rows that alternate have a panel each. The color is the root mean square (RMS) of a line's change, relative to the
    RMS of all visited lines of the matrix before training. Lines that were never visited are gray. ``slices.csv``
    contains both numbers for every visited line. Slices along directions change all columns.

    **When.** The changes of slices are added up before each move. At the end of training both files are written to the
    run's log folder, and the picture is sent to every logger that accepts images (TensorBoard). If a run in one
    process ends with an exception, the files show the run up to there. With several processes nothing is written then,
    because the processes cannot communicate.
    **Repeated visits.** For a line that was visited once, the change is exactly that of the stored weight. For a line
    that was visited several times, it is the root of the sum of the squared changes of all visits. The difference to
    the initial weight would need a copy of all weights.
    **Memory.** As many numbers as are trained at a time, and two for each line, in the CPU's memory; with directions
    three numbers for each column.
    **Checkpoint.** Contains these numbers, so the picture of a resumed run equals that of an uninterrupted run. If a
    checkpoint was written without this callback, the picture begins there, and its title says so.
    **Limits.** Needs a SliceFineCallback before or after it in the list, and must come before weight averaging. It
    shows the trained weights, not their average, and no parameters that are trained in full. Without matplotlib, which
    ``setup`` checks, only ``slices.csv`` is written.
    """

    def __init__(self) -> None:
        self._tracker: UpdateTracker | None = None
        self._first_step = 0
        self._saved: dict[str, Any] = {}
        self._plots = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the trainer, and reset the state of an earlier run."""
        if stage == "fit":
            _required_slicefine(trainer)
            check_before_weight_averaging(self, trainer)
            self._plots = can_plot(self, "slices.png")
            self._saved = self._saved if trainer.global_step else {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to track the slices, or continue; checkpoints have been restored by now."""
        self._tracker = UpdateTracker(_required_slicefine(trainer).opened())
        self._first_step = self._saved.get("first_step", trainer.global_step)
        if self._saved:
            self._tracker.load_state_dict(self._saved["updates"])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files; the slices are still open, in any order of callbacks."""
        self._finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the files up to here."""
        if self._tracker is not None and trainer.world_size == 1:
            self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        assert self._tracker is not None
        self._saved, lines, self._tracker = self.state_dict(), self._tracker.lines(), None
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a collective call: all processes read it
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run"):  # noqa: B009  (Trainer does not declare it)
            return
        steps = f"{trainer.global_step:,} optimizer step" + "s" * (trainer.global_step != 1)
        if self._first_step:
            steps = f"optimizer steps {self._first_step:,} to {trainer.global_step:,}; earlier steps were not observed"
        with warn_on_error(folder / "slices.csv"):
            write_updates(folder / "slices.csv", lines)
        if not self._plots:
            return
        with warn_on_error(folder / "slices.png"):
            figure = plot_map(lines, steps)
            save_figure(figure, folder / "slices.png")
            for logger in trainer.loggers:
                experiment: Any = getattr(logger, "experiment", None)
                if hasattr(experiment, "add_image"):
                    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
                    experiment.add_image("slices", pixels, trainer.global_step, dataformats="HWC")

    def state_dict(self) -> dict[str, Any]:
        """Return the changes so far."""
        if self._tracker is None:
            return self._saved
        return {"first_step": self._first_step, "updates": self._tracker.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint when training starts; at once after a search, which restores one during a run."""
        self._saved = state_dict
        if self._tracker is not None:
            self._tracker.load_state_dict(state_dict["updates"])


def _required_slicefine(trainer: Trainer) -> SliceFineCallback:
    found = slicefine_of(trainer)
    if found is None:
        raise MisconfigurationException(
            "SliceMap shows what SliceFineCallback trains, and the trainer has none; add one to the list of callbacks,"
            " or remove SliceMap."
        )
    return found
