"""The closing table of a fit: what was reached, at what cost, and where it lies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.table import Column, Table

from slicefine_pl.callbacks.linear_probe import LinearProbe
from slicefine_pl.callbacks.support.other_callbacks import trainer_callbacks
from slicefine_pl.cli.recipe.report import RunReport


def print_result(
    trainer: Trainer, module: LightningModule, scores: Mapping[str, float], best: str, exported: Path | None
) -> None:
    """Print the table, and the lines that load the exported model without this package.

    Args:
        trainer: Has a ``RunReport`` among its callbacks.
        module: What was trained.
        scores: Of the best checkpoint, by name.
        best: Path of that checkpoint; empty if none was written.
        exported: Folder of the exported model, if there is one.
    """
    callbacks = trainer_callbacks(trainer)
    report = next(each for each in callbacks if isinstance(each, RunReport))
    total = sum(parameter.numel() for parameter in module.parameters())
    table = Table("", Column(overflow="fold"), show_header=False, title="Result")  # paths that can be copied
    for probe in (each for each in callbacks if isinstance(each, LinearProbe) and "test" in each.scores):
        told = f"{probe.scores['test']:.4f}   (linear head on the frozen network, {probe.seconds:.0f} s)"
        table.add_row(f"test/{probe.metric} before", told)
    for name, value in report.before.items():
        table.add_row(f"{name} before", f"{value:.4f}   (pretrained network)")
    for name, value in scores.items():
        table.add_row(f"{name} after", f"{value:.4f}")
    share = f"{report.trained:,} at a time, of {total:,} ({report.trained / total:.2%})"
    table.add_row("trained parameters", share)
    steps = f"{trainer.global_step} step" + "s" * (trainer.global_step != 1)
    table.add_row("training", f"{report.seconds:.0f} s, {steps}")
    table.add_row("best checkpoint", best or "none")
    table.add_row("exported model", str(exported or "none"))
    console = Console()
    console.print(table)
    if exported is not None:
        console.print("Use it without this package:\n", style="bold")
        example: Any = getattr(module, "example")  # noqa: B009  (a module that has export has it)
        print(example(exported))
