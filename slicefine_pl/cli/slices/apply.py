"""``slicefine apply`` and ``merge``: write the trained model, from its base and what slices trained."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``slicefine apply`` and ``merge``."""
    parser.description = (
        "Write the trained model: the base model with what a slice file contains. It equals the trained model bit for\n"
        "bit, or up to rounding where slices lay along directions.\n"
        "OUT has the form of BASE, a folder or a file, and the names of the trained model."
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "base", help="base model: folder with model.safetensors, safetensors file, or package:NAME/PLACE"
    )
    parser.add_argument("file", type=Path, help="slice file, or a checkpoint of slices (.ckpt)")
    parser.add_argument("out", type=Path, help="folder or file to write")


def run(arguments: argparse.Namespace) -> int:
    """Write the model; returns the exit code."""
    from slicefine_pl.cli.slices.weights import read_slices, read_weights, with_names_of, write_weights
    from slicefine_pl.slicing.applied import put_in

    file = read_slices(arguments.file)
    source, tensors = read_weights(arguments.base)
    trained = with_names_of(file, tensors)
    file.check_base(trained)
    put_in(trained, file)
    write_weights(source, trained, arguments.out)
    names = {each.name for each in file.matrices}
    print(
        f"{arguments.out}: {len(names)} matrices contain what slices trained, {len(file.whole)} tensors were replaced."
    )
    return 0
