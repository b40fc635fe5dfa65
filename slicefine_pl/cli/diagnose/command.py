"""``slicefine diagnose``: measure a network on your data before slices are trained.

Only the arguments are defined here; ``--help`` imports neither torch nor Lightning.
"""

import argparse
from pathlib import Path

from slicefine_pl.cli.diagnose.config import MINILM, DiagnoseConfig, model_kind
from slicefine_pl.optional import optional_imports

DESCRIPTION = """Measure spectral balance, task energy, tangent kernel and slice gradients of a backbone on your data,
with controls. Writes a report with plots (report.html) and all numbers (report.json)."""
EXAMPLE = f"""examples:
  slicefine diagnose                                              # MiniLM on film reviews
  slicefine diagnose --model bert-base-uncased --data my.csv --text-columns title,body --label-column stars
  slicefine diagnose --model timm/vit_small_patch16_224 --data folder_of_images --rank 16 --folder diagnosis_vit

The default model is {MINILM}. Without --data, text models read film reviews, and image models digits."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``slicefine diagnose``."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLE
    default = DiagnoseConfig()
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--model", default=default.model, help="hub name, folder, package:..., timm/<name> or torchvision/<name>")
    add("--data", help="texts: reviews, tweets, ..., a file or a folder; images: digits, a folder or vtab/<name>")
    add("--kind", choices=("text", "image"), help="input of the model (default: derived from the model)")
    add("--text-columns", type=_names, default=default.text_columns, help="columns of the texts, separated by commas")
    add("--label-column", default=default.label_column, help="column of the labels")
    add("--task", choices=("classification", "regression"), default=default.task, help="task of a text model")
    add("--pooling", choices=("default", "mean"), default=default.pooling, help="pooling of a text encoder")
    add("--size", type=int, help="height and width of images, in pixels (default: the backbone's own)")
    add("--root", help="folder of a published set of images")
    add("--rank", type=int, default=default.rank, help="rows or columns of a slice (default: %(default)s)")
    add("--targets", help="regular expression over layer names (default: what SliceFineCallback slices)")
    add("--groups", type=int, default=default.groups, help="groups for spectral balance (default: %(default)s)")
    add("--candidates", type=int, default=default.candidates, help="slices that take a step (default: %(default)s)")
    add("--examples", type=int, default=default.examples, help="training examples to use (default: %(default)s)")
    add(
        "--kernel-samples",
        type=int,
        default=default.kernel_samples,
        help="examples in the tangent kernel (default: %(default)s)",
    )
    add(
        "--control",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also measure the network without pretraining",
    )
    add("--seed", type=int, default=default.seed, help="seed of every random choice (default: %(default)s)")
    add("--folder", type=Path, default=Path("diagnosis"), help="folder of the report (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace an existing report")


def run(arguments: argparse.Namespace) -> int:
    """Write the report; returns the exit code."""
    config = DiagnoseConfig.from_arguments(arguments)
    with optional_imports(model_kind(config.model, config.kind)):  # the extra has the name of the kind
        from slicefine_pl.cli.diagnose.report import write_report  # imports torch

        write_report(config, arguments.folder, control=arguments.control, overwrite=arguments.overwrite)
    return 0


def _names(text: str) -> tuple[str, ...]:
    """Names of one or two columns, as in ``title,body`` or, as in the recipes, ``[title, body]``."""
    return tuple(name.strip() for name in text.removeprefix("[").removesuffix("]").split(","))
