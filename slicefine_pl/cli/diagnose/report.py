"""Measure a network on the user's data, and write the report.

The folder of the report contains ``report.html``, with plots, and ``report.json``, with all numbers.
"""

import json
import platform
import sys
import time
import warnings
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from slicefine_pl.cli.diagnose.config import DiagnoseConfig, model_kind
from slicefine_pl.cli.diagnose.diagnosed_model import DiagnosedModel, load, without_pretraining
from slicefine_pl.cli.diagnose.head import count
from slicefine_pl.cli.diagnose.measurements import Measurements, measure_model
from slicefine_pl.cli.diagnose.report_html import render_page, step_table
from slicefine_pl.cli.diagnose.report_json import to_json_values
from slicefine_pl.cli.diagnose.report_plots import draw
from slicefine_pl.cli.diagnose.report_text import captions, conclusions
from slicefine_pl.cli.recipe.errors import WEIGHT_ERRORS, describe
from slicefine_pl.cli.recipe.preflight import check_output_folder
from slicefine_pl.files.atomic import write_atomic
from slicefine_pl.optional import require

LOADERS = {"text": "transformers", "image": "torchvision"}  # needed for any model of a kind
LIBRARIES = ("slicefine-pl", "torch", "transformers", "lightning", "numpy", "matplotlib")
REPORT_BYTES = 20_000_000


def write_report(config: DiagnoseConfig, folder: Path, *, control: bool, overwrite: bool) -> None:
    """Measure, print the conclusions, and write the report.

    Args:
        config: What to measure.
        folder: Folder of the report; created if necessary.
        control: Whether to measure the network without pretraining, too.
        overwrite: Whether an existing report is replaced.

    Raises:
        ValueError: The model, its weights or the data cannot be used.
        OSError: The folder contains a report, or cannot be written.
        ImportError: A package is not installed.
    """
    for package in (LOADERS[model_kind(config.model, config.kind)], "matplotlib", "jinja2"):
        require(package)
    _check_folder(folder, overwrite=overwrite)
    began, cpu = time.perf_counter(), time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="torch|lightning")
            model, measured, baseline = _measure(config, control=control)
    except (MisconfigurationException, *WEIGHT_ERRORS) as error:
        raise ValueError(describe(error)) from error
    setup = _setup(config, model, measured) | {"control": control, "folder": str(folder)}
    setup["seconds"] = {"wall": time.perf_counter() - began, "processor": time.process_time() - cpu}
    own = to_json_values(measured, config.rank)
    other = None if baseline is None else to_json_values(baseline, config.rank)
    paragraphs, notes = conclusions(own, other, setup), captions(own, other, setup)
    written = {
        "setup": setup,
        "conclusions": paragraphs,
        "captions": notes,
        "network": own,
        "without_pretraining": other,
    }
    page = render_page(paragraphs, notes, draw(measured, baseline, config.rank), step_table(own), setup)
    write_atomic(folder / "report.json", json.dumps(written, indent=1, allow_nan=False) + "\n")
    write_atomic(folder / "report.html", page)
    for heading, paragraph in paragraphs.items():
        print(f"\n{heading} {paragraph}")
    print(f"\n{setup['seconds']['wall']:.0f} s. Report: {folder / 'report.html'}, numbers: report.json")


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    existing = [name for name in ("report.html", "report.json") if (folder / name).exists()]
    if existing and not overwrite:
        raise FileExistsError(
            f"folder {str(folder)!r} contains {existing[0]} already; give another --folder, or --overwrite."
        )
    check_output_folder(folder, needed=REPORT_BYTES, setting="--folder")


def _measure(config: DiagnoseConfig, *, control: bool) -> tuple[DiagnosedModel, Measurements, Measurements | None]:
    progress = partial(print, flush=True)
    progress(f"Loading {config.model} and its data; a new head is fitted ...")
    model = load(config)
    available = " and ".join(f"{number:,} {name}" for name, number in model.available.items())
    used = f"{count(model.train):,} and {count(model.held_out):,} are measured"
    progress(f"Your data: {available} examples, of which {used}. The head {model.head}.")
    measured = measure_model(model, config, control=False, progress=progress)
    if not control:
        return model, measured, None
    progress("The same network without pretraining:")
    baseline = without_pretraining(model, config.seed)
    return model, measured, measure_model(baseline, config, control=True, progress=progress)


def _setup(config: DiagnoseConfig, model: DiagnosedModel, measured: Measurements) -> dict[str, Any]:
    """What was measured, for both files."""
    return {
        **asdict(config),
        "text_columns": ",".join(config.text_columns),
        "data": model.source,
        "head": model.head,
        "metric": "Pearson correlation" if model.module.num_classes == 1 else "accuracy",
        "scores": model.scores,
        "loss": f"mean {model.loss_name}; the head {model.head}; network in eval mode",
        "outputs": model.module.num_classes,
        "given_examples": model.available,
        "training_examples": count(model.train),
        "validation_examples": count(model.held_out),
        "slices_together": len(measured.winners.layers),
        "command_line": " ".join(["slicefine", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "threads": torch.get_num_threads(),
    }
