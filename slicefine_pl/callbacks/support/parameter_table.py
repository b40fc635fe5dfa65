"""Lightning's table of parameters, with correct counts while slices are open.

A slice is a parameter of its own, because the optimizer needs one, but its numbers are entries of the weight in which
it lies. Lightning sums over ``module.parameters()`` and would count them twice.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, RichModelSummary
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_summary.model_summary import LayerSummary
from lightning.pytorch.utilities.model_summary.model_summary import ModelSummary as SummaryTable
from torch import nn

from slicefine_pl.slicing.slice import duplicated_numel, padding_numel
from slicefine_pl.trainer_callbacks import trainer_callbacks


class ParameterTable(ModelSummary):
    """Print the parameters of the module and its parts, without FLOPs.

    Lightning computes FLOPs from ``example_input_array``, and prints 0 for a module without one.
    """

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        columns = [[head, *cells] for head, cells in summary_data if head != "FLOPs"]
        widths = [max(map(len, column)) for column in columns]
        lines = [
            " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in zip(*columns, strict=True)
        ]
        share = trainable_parameters / max(total_parameters, 1)
        lines.append(
            f"{trainable_parameters:,} of {total_parameters:,} parameters ({share:.2%}) are trained at a time;"
            f" {model_size:,.1f} MB in total"
        )
        rank_zero_info("\n" + "\n".join(lines))


def use_parameter_table(trainer: Trainer, pl_module: LightningModule) -> None:
    """Replace Lightning's tables by a :class:`ParameterTable` of the same depth, if they would print 0 FLOPs."""
    if pl_module.example_input_array is not None:
        return
    callbacks = trainer_callbacks(trainer)
    for place, callback in enumerate(callbacks):
        if type(callback) in (ModelSummary, RichModelSummary):
            callbacks[place] = ParameterTable(callback._max_depth)  # type: ignore[attr-defined]  # no public name


def patch_model_summary() -> None:
    """Have all of Lightning's summaries count the entries of open slices once.

    The summaries have no setting for what to count, so three of their properties are replaced until the process ends.
    Counts of a module without open slices do not change.
    """
    for summary, name, module, excess in (
        (LayerSummary, "num_parameters", "_module", duplicated_numel),
        (SummaryTable, "total_parameters", "_model", duplicated_numel),
        (SummaryTable, "trainable_parameters", "_model", padding_numel),
    ):
        counter = getattr(summary, name).fget
        if not hasattr(counter, "__wrapped__"):  # otherwise it has been replaced before
            setattr(summary, name, property(_minus(counter, module, excess)))


def _minus(counter: Callable[[Any], int], module: str, excess: Callable[[nn.Module], int]) -> Callable[[Any], int]:
    @wraps(counter)
    def count(summary: Any) -> int:
        return counter(summary) - excess(getattr(summary, module))

    return count
