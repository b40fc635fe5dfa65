"""``slicefine to-lora``: write a slice file as a LoRA adapter for peft."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from slicefine_pl.slicing import SliceFile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``slicefine to-lora``."""
    parser.description = (
        "Write a slice file as a LoRA adapter that peft.PeftModel.from_pretrained(base, OUT) loads, without loss.\n"
        "The base model is that of the file, if the file was trained with a module of this package; else name its\n"
        "class in transformers."
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("file", type=Path, help="slice file")
    add("out", type=Path, help="folder to write")
    add("--base", help="base model: folder, hub name, or package:NAME/PLACE (default: that of the file)")
    add("--class", dest="model_class", help="class of the trained model, such as BertForSequenceClassification")
    add("--labels", type=int, help="number of classes of a new head, with --class")
    add("--max-rank", type=int, help="largest rank; weights that need more lose a part of their change")
    add("--store-whole", action="store_true", help="store modules whole that LoRA cannot express")
    add("--leave-out", action="store_true", help="leave out what peft cannot express, instead of refusing")
    add("--push", help="repository on the Hugging Face Hub to upload to, OWNER/NAME")


def run(arguments: argparse.Namespace) -> int:
    """Write the adapter; returns the exit code."""
    from slicefine_pl.slicing import SliceFile, export_lora

    file = SliceFile.read(arguments.file)
    export = export_lora(
        file,
        _base(file, arguments),
        arguments.out,
        max_rank=arguments.max_rank,
        store_whole=arguments.store_whole,
        leave_out=arguments.leave_out,
        push=arguments.push,
    )
    print(f"{arguments.out}: {export}.")
    if export.lost:
        print(f"With this rank, {export.total_lost:.1%} of the change is lost (relative Frobenius norm).")
    if export.left_out:
        print(f"Left out: {', '.join(export.left_out)}.")
    return 0


def _base(file: "SliceFile", arguments: argparse.Namespace) -> "nn.Module":
    """Load the base model with the class that was trained.

    Raises:
        ValueError: The class is not known.
    """
    import slicefine_pl.modules

    name, base = file.extra.get("module"), arguments.base or file.base_model
    if arguments.model_class is None and name in slicefine_pl.modules.__all__:
        module_class: Any = getattr(slicefine_pl.modules, name)
        settings = module_class.settings_of_slices(arguments.file) | ({"backbone": base} if base else {})
        network: nn.Module = module_class(**settings).model
        return network
    if not base:
        raise ValueError(f"{str(arguments.file)!r} does not name its base model; give --base.")
    return _from_transformers(base, arguments.model_class, arguments.labels)


def _from_transformers(base: str, name: str | None, labels: int | None) -> "nn.Module":
    import transformers

    from slicefine_pl.pretrained import locate

    place = locate(base)
    if name is None:
        names = transformers.AutoConfig.from_pretrained(place).architectures or []
        name = names[0] if names else "none"
    if not isinstance(found := getattr(transformers, name, None), type):
        raise ValueError(f"class {name!r} is not in transformers; give the class of the trained model with --class.")
    settings = {} if labels is None else {"num_labels": labels}
    loader: Any = found
    network: nn.Module = loader.from_pretrained(place, **settings)
    return network
