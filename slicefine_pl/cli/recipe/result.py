"""The closing table of a fit: scores, cost, and where the results are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from slicefine_pl.callbacks.linear_probe import LinearProbe
from slicefine_pl.cli.recipe.adapter import adapter_example
from slicefine_pl.cli.recipe.run_report import RunReport
from slicefine_pl.slicing import LoraExport
from slicefine_pl.text_table import text_table
from slicefine_pl.trainer_callbacks import trainer_callbacks


def print_result(
    trainer: Trainer,
    module: LightningModule,
    scores: Mapping[str, float],
    best: str,
    exported: Path | None,
    slices: Path | None,
    adapter: LoraExport | None = None,
) -> None:
    """Print the table, and Python code that loads the exported model or adapter without this package.

    Args:
        trainer: Trainer with a ``RunReport`` among its callbacks.
        module: Trained module.
        scores: Scores of the best checkpoint, by metric.
        best: Path of that checkpoint; empty if none was written.
        exported: Folder of the exported model, if there is one.
        slices: The slice file, if there is one.
        adapter: The LoRA adapter, if one was written.
    """
    callbacks = trainer_callbacks(trainer)
    probes = [each for each in callbacks if isinstance(each, LinearProbe) and "test" in each.scores]
    report = next(each for each in callbacks if isinstance(each, RunReport))
    total = sum(parameter.numel() for parameter in module.parameters())
    steps = f"{trainer.global_step} step" + "s" * (trainer.global_step != 1)
    rows = [
        *(
            (
                f"test/{probe.metric} before",
                f"{probe.scores['test']:.4f}   (linear head on the frozen network, {probe.seconds:.0f} s)",
            )
            for probe in probes
        ),
        *((f"{name} before", f"{value:.4f}   (pretrained network)") for name, value in report.scores_before.items()),
        *((f"{name} after", f"{value:.4f}") for name, value in scores.items()),
        ("trained parameters", f"{report.trainable:,} at a time, of {total:,} ({report.trainable / total:.2%})"),
        ("training", f"{report.seconds:.0f} s, {steps}"),
        ("best checkpoint", best or "none"),
        *([("exported model", str(exported or "none"))] if adapter is None else []),
        *([] if slices is None else [("slice file", f"{slices}   ({slices.stat().st_size / 1e6:.1f} MB)")]),
        *([] if adapter is None else [("LoRA adapter", f"{adapter.folder}   ({adapter})")]),
    ]
    print("\n" + text_table(("Result", ""), [rows]))
    for probe in probes:  # of their metrics, accuracy and correlation, more is better
        if (after := scores.get(f"test/{probe.metric}")) is not None and after < probe.scores["test"]:
            print(
                f"\nFine-tuning ended below the linear head ({after:.4f} < {probe.scores['test']:.4f}). Train"
                " longer, or try other learning rates (--model.lr)."
            )
    if exported is not None:
        example: Any = getattr(module, "example")  # noqa: B009  (a module that has export has it)
        print(f"\nUse it without this package:\n\n{example(exported)}")
    if adapter is not None:
        print(f"\nUse it with peft:\n\n{adapter_example(type(module), slices, adapter.folder)}")
