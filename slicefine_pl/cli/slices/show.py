"""``slicefine file``: what is in a slice file, and to which base it belongs."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slicefine_pl.text_table import text_table

if TYPE_CHECKING:
    from torch import Tensor

    from slicefine_pl.slicing import SliceFile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``slicefine file``."""
    parser.description = "Show what was trained, and on which base model."
    parser.set_defaults(run=run)
    parser.add_argument("file", type=Path, help="slice file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Print the content; returns the exit code."""
    from slicefine_pl.slicing import SliceFile

    file = SliceFile.read(arguments.file)
    size = arguments.file.stat().st_size
    print(json.dumps(_content(file, size), indent=1) if arguments.json else _table(file, size))
    return 0


def _content(file: "SliceFile", size: int) -> dict[str, Any]:
    lines = [
        {
            "matrix": each.name,
            "axis": each.axis,
            "lines": len(each.index),
            "shape": list(each.values.shape),
            "type": _type(each.values),
            "base": each.has_base,
        }
        for each in file.lines
    ]
    directions = [
        {
            "matrix": each.name,
            "directions": each.directions.shape[1],
            "shape": [len(each.change), len(each.directions)],
            "type": _type(each.change),
            "base": each.has_base,
        }
        for each in file.directions
    ]
    return {
        "base model": file.base_model,
        "package version": file.package_version,
        "size in bytes": size,
        "settings": file.settings,
        "extra": file.extra,
        "lines": lines,
        "directions": directions,
        "whole": {name: list(values.shape) for name, values in file.whole.items()},
    }


def _table(file: "SliceFile", size: int) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in file.settings.items())
    title = (
        f"Base model: {file.base_model or 'not named'}. Trained with slicefine-pl {file.package_version}: {settings}."
    )
    returns = "contains" if file.matrices and all(each.has_base for each in file.matrices) else "does not contain"
    caption = f"{size / 1e6:.2f} MB. The file {returns} the values of the base, for slicefine remove."
    return text_table(("tensor", "trained", "shape", "type"), [list(_rows(file))], title=title, caption=caption)


def _rows(file: "SliceFile") -> Iterator[list[str]]:
    for lines in file.lines:
        trained = f"{len(lines.index)} {lines.axis}s"
        yield [lines.name, trained, str(list(lines.values.shape)), _type(lines.values)]
    for matrix in file.directions:
        trained, shape = f"{matrix.directions.shape[1]} directions", [len(matrix.change), len(matrix.directions)]
        yield [matrix.name, trained, str(shape), _type(matrix.change)]
    for name, values in file.whole.items():
        yield [name, "whole", str(list(values.shape)), _type(values)]


def _type(values: "Tensor") -> str:
    return str(values.dtype).removeprefix("torch.")
