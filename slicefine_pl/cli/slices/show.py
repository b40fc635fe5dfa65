"""``slicefine file``: what is in a slice file, and to which base it belongs."""

import argparse
import json
from pathlib import Path

from slicefine_pl.text_table import text_table


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
    lines = [
        {
            "matrix": each.name,
            "axis": each.axis,
            "lines": len(each.index),
            "shape": list(each.values.shape),
            "type": str(each.values.dtype).removeprefix("torch."),
            "base": each.base is not None,
        }
        for each in file.lines
    ]
    whole = {name: list(values.shape) for name, values in file.whole.items()}
    facts = {
        "base model": file.base_model,
        "package version": file.package_version,
        "size in bytes": arguments.file.stat().st_size,
        "settings": file.settings,
        "extra": file.extra,
    }
    if arguments.json:
        print(json.dumps({**facts, "lines": lines, "whole": whole}, indent=1))
        return 0
    rows = [
        [str(each["matrix"]), f"{each['lines']} {each['axis']}s", str(each["shape"]), str(each["type"])]
        for each in lines
    ]
    rows += [
        [name, "whole", str(shape), str(file.whole[name].dtype).removeprefix("torch.")] for name, shape in whole.items()
    ]
    settings = ", ".join(f"{name}={value}" for name, value in file.settings.items())
    title = (
        f"Base model: {file.base_model or 'not named'}. Trained with slicefine-pl {file.package_version}: {settings}."
    )
    returns = "contains" if lines and all(each["base"] for each in lines) else "does not contain"
    caption = f"{facts['size in bytes'] / 1e6:.2f} MB. The file {returns} the values of the base in these lines."
    print(text_table(("tensor", "trained", "shape", "type"), [rows], title=title, caption=caption))
    return 0
