"""``slicefine remove``: write the base model, from a trained model and its slice file."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``slicefine remove``."""
    parser.description = (
        "Write the base model: the trained model without what a slice file contains, bit for bit.\n"
        "The file must contain the base's values; handle.save(..., base=...) stores them. What the base did not have,\n"
        "such as a new head, is left out. Where slices lay along directions, the trained model must be one that\n"
        "slicefine apply wrote, because training rounds in another way."
    )
    parser.set_defaults(run=run)
    parser.add_argument("model", help="trained model: folder with model.safetensors, or safetensors file")
    parser.add_argument("file", type=Path, help="slice file")
    parser.add_argument("out", type=Path, help="folder or file to write")


def run(arguments: argparse.Namespace) -> int:
    """Write the model; returns the exit code."""
    from slicefine_pl.cli.slices.weights import read_weights, write_weights
    from slicefine_pl.slicing import SliceFile
    from slicefine_pl.slicing.applied import take_out

    file = SliceFile.read(arguments.file)
    source, tensors = read_weights(arguments.model)
    take_out(tensors, file)
    base = {name: tensor for name, tensor in tensors.items() if name not in file.whole.keys() - file.whole_base.keys()}
    write_weights(source, base, arguments.out)
    print(f"{arguments.out}: the base's values are back in {len({each.name for each in file.matrices})} matrices.")
    return 0
