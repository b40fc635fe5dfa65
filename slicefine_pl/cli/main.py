"""The command ``slicefine`` and its subcommands.

Only the module of the chosen subcommand is imported, so ``slicefine --help`` imports neither torch nor Lightning.
An error that the user can correct is one sentence on stderr; the exit code is then 2.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from slicefine_pl.cli.errors import USER_ERRORS, message_of
from slicefine_pl.cli.parser import OneSentenceParser
from slicefine_pl.optional import optional_imports

# Each module has add_arguments(parser), which sets the default run=; run(arguments) returns the exit code.
COMMANDS = {
    "advise": ("slicefine_pl.cli.scaling.advise", "how sparse to train, before you train"),
    "fit-law": ("slicefine_pl.cli.scaling.fit_law", "fit the scaling law L(S, N, D) to your runs"),
    "file": ("slicefine_pl.cli.slices.show", "what is in a slice file"),
    "apply": ("slicefine_pl.cli.slices.apply", "base model + slice file = trained model"),
    "merge": ("slicefine_pl.cli.slices.apply", "the same as apply; also for small checkpoints"),
    "remove": ("slicefine_pl.cli.slices.remove", "trained model - slice file = base model"),
    "to-lora": ("slicefine_pl.cli.slices.to_lora", "slice file -> LoRA adapter for peft"),
    "diagnose": ("slicefine_pl.cli.diagnose.command", "measure your model and data before training slices"),
    "doctor": ("slicefine_pl.cli.doctor.command", "check what this machine can train with"),
}


def make_parser(chosen: str | None) -> argparse.ArgumentParser:
    """Make the parser of the command line.

    Args:
        chosen: Subcommand whose arguments are added; its module is imported.
    """
    parser = OneSentenceParser(
        prog="slicefine",
        description="Slice files, scaling laws of sparse models, diagnosis of a model, and a check of the machine.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == chosen:
            import_module(module).add_arguments(command)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    chosen = next((name for name in given if name in COMMANDS), None)
    try:
        with optional_imports():
            parsed = make_parser(chosen).parse_args(given)
            return int(parsed.run(parsed))
    except USER_ERRORS as error:
        print(f"slicefine {chosen}: {' '.join(message_of(error).split())}", file=sys.stderr)
        return 2
