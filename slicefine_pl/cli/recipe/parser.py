"""The parser of a recipe: its help, and what it says about a wrong setting.

jsonargparse shows the settings of an optional class only on a second call, ``--slicefine.help``.
"""

import os
from argparse import SUPPRESS
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser

from slicefine_pl.callbacks import SliceFineCallback, SparsityCallback
from slicefine_pl.cli.recipe.wrong_setting import describe_wrong_setting

SECTIONS: dict[str, type[Callback]] = {"slicefine": SliceFineCallback, "sparsity": SparsityCallback}


class RecipeParser(LightningArgumentParser):
    """Parser that reports an error in one sentence.

    Its ``--help`` ends with the settings of ``--slicefine`` and ``--sparsity``. Names of settings are not abbreviated.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong in one sentence, and exit with code 2."""
        if not self.exit_on_error or os.environ.get("SLICEFINE_DEBUG"):
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        self.exit(2, f"error: {describe_wrong_setting(parser, message, ex)}\n")

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Return the complete help."""
        parts = [super().format_help(*args, **kwargs)]
        for name, callback in SECTIONS.items():
            if f"--{name}" in self._option_string_actions:
                settings = ArgumentParser(usage=SUPPRESS, add_help=False)
                settings.add_class_arguments(callback, name)
                parts.append(settings.format_help().lstrip())
        return "\n".join(parts)
