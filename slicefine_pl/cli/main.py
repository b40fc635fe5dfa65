"""The command ``slicefine``: advice before a sparse run, the law of a set of runs, a look at a model before slicing.

Answers one question: which subcommand?  Whatever the user got wrong is one sentence on stderr and exit code 2.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from slicefine_pl.cli.diagnose import command as diagnose
from slicefine_pl.cli.errors import USER_ERRORS, WEIGHT_ERRORS, in_words
from slicefine_pl.cli.scaling import advise, fit_law


class OneSentenceParser(argparse.ArgumentParser):
    """A parser whose errors are one sentence; the usage is for ``--help``."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and leave with 2."""
        self.exit(2, f"{self.prog}: {message.strip()}\n")


def parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    whole = OneSentenceParser(
        prog="slicefine",
        description="Sparse models: advice before the run, a law from your runs. Slices: a look at your model.",
    )
    commands = whole.add_subparsers(dest="command", required=True, parser_class=OneSentenceParser)
    for command in (advise, fit_law, diagnose):
        command.add_parser(commands)
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    parsed = parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except (*USER_ERRORS, *WEIGHT_ERRORS) as error:
        print(f"slicefine {parsed.command}: {' '.join(in_words(error).split())}", file=sys.stderr)
        return 2
    return 0
