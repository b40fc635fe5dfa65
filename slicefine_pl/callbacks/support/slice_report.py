"""What a SliceFine run logs and prints."""

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from slicefine_pl.run_length import run_length
from slicefine_pl.slicing import SliceHandle


def slice_metrics(handle: SliceHandle) -> dict[str, float]:
    """Return what is logged at the start and after each move."""
    counts = handle.counts()
    return {
        "slicefine/trained": counts.trained,
        "slicefine/coverage": counts.coverage,
        "slicefine/moves": handle.moves,
    }


def report_run(handle: SliceHandle, steps: int, seconds: float) -> None:
    """Print what a run has trained.

    Args:
        handle: The slices, still open.
        steps: Optimizer steps of the run.
        seconds: Time that the run spent in training batches.
    """
    if not steps:
        rank_zero_info("SliceFine: this fit made no optimizer step.")
        return
    counts = handle.counts()
    times = "once" if handle.moves == 1 else f"{handle.moves} times"
    moved = f"the slices moved {times}; " if handle.moves else ""
    rank_zero_info(
        f"SliceFine: {moved}{counts.coverage:.1%} of the {counts.sliced:,} weights in sliced layers were trained;"
        f" {counts.trained:,} of {counts.total:,} parameters were trained at a time;"
        f" {1e3 * seconds / steps:.0f} ms per optimizer step."
    )


def report_short_run(trainer: Trainer, interval: int | None) -> None:
    """Print a hint if the run ends before its slices move, as it does with a small data set."""
    if interval is None or not trainer.lightning_module.automatic_optimization:
        return
    steps = run_length(trainer)
    if steps is not None and 1 < steps < interval:
        shorter = max(1, steps // 4)
        moves = (steps - 1) // shorter
        rank_zero_info(
            f"SliceFine: the slices never move, because the run makes {steps} optimizer steps and interval is"
            f" {interval}. interval={shorter} would move them {'once' if moves == 1 else f'{moves} times'}."
        )
