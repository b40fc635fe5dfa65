"""What have moving slices learned, and where?  A coverage map of a SliceFine run, and its numbers."""

from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer

from slicefine_pl.analysis.plots import save_figure
from slicefine_pl.callbacks.slicefine import SliceFineCallback, slicefine_of
from slicefine_pl.callbacks.support.other_callbacks import check_before_weight_averaging
from slicefine_pl.callbacks.support.slice_map_plot import draw_map, write_changes
from slicefine_pl.files.atomic import warn_on_error
from slicefine_pl.optional import optional_imports
from slicefine_pl.slicing import UpdateTracker


class SliceMap(Callback):
    """Draw which lines of each matrix a SliceFine run has trained, and how much it has changed them.

    ``slices.png`` has a row for each sliced matrix, over the position along the sliced axis, from 0 to 1 whatever its
    size; columns and rows that take turns have a panel each.  The colour is the root mean square of a line's change,
    as a share of the root mean square that the matrix's visited lines had before; lines never visited are grey.
    ``slices.csv`` holds both numbers for every visited line.

    **When.** Before each move, what the slices learned is added up; at the end of training both files are written into
    the run's log folder, and the picture to every logger that takes images (TensorBoard).  A run in one process that
    dies leaves them too, as far as it came; of several processes none can ask the others then, and nothing is written.
    **What a change is.** Of a line visited once, exactly that of the stored weight.  Of a line visited several times,
    the root of the summed squares of its changes, visit by visit; a whole copy of the weights would be needed for more.
    **Memory.** As many numbers as are trained at a time, and two for each line, outside the device.
    **Checkpoint.** Holds them: the picture of a run that stopped and resumed is that of one that never stopped.  If the
    checkpoint was written without this callback, the picture begins there, and says so.
    **Limits.** Needs matplotlib and a SliceFineCallback, before or after it in the list.  Parameters trained whole are
    not shown.  Comes before weight averaging in the list, and shows what was trained, not its average.
    """

    def __init__(self) -> None:
        self._changes: UpdateTracker | None = None
        self._since = 0
        self._saved: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a run without slices, and forget another run."""
        if stage == "fit":
            _slicefine(trainer)
            check_before_weight_averaging(self, trainer)
            self._saved = self._saved if trainer.global_step else {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to listen, or go on; every checkpoint has been restored by now."""
        self._changes = UpdateTracker(_slicefine(trainer).opened())
        self._since = self._saved.get("since", trainer.global_step)
        if self._saved:
            self._changes.load_state_dict(self._saved["changes"])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the map; the slices are still open, whichever callback comes first."""
        self._finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what there is."""
        if self._changes is not None and trainer.world_size == 1:
            self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        assert self._changes is not None
        self._saved, lines, self._changes = self.state_dict(), self._changes.lines(), None
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asking for it takes all processes
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run"):  # noqa: B009  (Trainer does not declare it)
            return
        steps = f"{trainer.global_step:,} optimizer step" + "s" * (trainer.global_step != 1)
        if self._since:
            steps = f"optimizer steps {self._since:,} to {trainer.global_step:,}, the others were not observed"
        with warn_on_error(folder / "slices.csv"):
            write_changes(folder / "slices.csv", lines)
        with warn_on_error(folder / "slices.png"), optional_imports():
            figure = draw_map(lines, steps)
            save_figure(figure, folder / "slices.png")
            for logger in trainer.loggers:
                experiment: Any = getattr(logger, "experiment", None)
                if hasattr(experiment, "add_image"):
                    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
                    experiment.add_image("slices", pixels, trainer.global_step, dataformats="HWC")

    def state_dict(self) -> dict[str, Any]:
        """What was learned so far."""
        if self._changes is None:
            return self._saved
        return {"since": self._since, "changes": self._changes.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the run that is being resumed, when training starts; or at once, after a search in this run."""
        self._saved = state_dict
        if self._changes is not None:
            self._changes.load_state_dict(state_dict["changes"])


def _slicefine(trainer: Trainer) -> SliceFineCallback:
    found = slicefine_of(trainer)
    if found is None:
        raise MisconfigurationException(
            "SliceMap shows what SliceFineCallback trains, and the trainer has none; add one to the list of"
            " callbacks, or take SliceMap out."
        )
    return found
