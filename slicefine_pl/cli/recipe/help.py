"""The help of a recipe, including the settings of slices and pruning.

jsonargparse shows the settings of an optional class only on a second call, ``--slicefine.help``.
"""

from argparse import SUPPRESS
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser

from slicefine_pl.callbacks import SliceFineCallback, SparsityCallback

SECTIONS: dict[str, type[Callback]] = {"slicefine": SliceFineCallback, "sparsity": SparsityCallback}


class RecipeParser(LightningArgumentParser):
    """Parser whose ``--help`` ends with the settings of ``--slicefine`` and ``--sparsity``."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Return the complete help."""
        parts = [super().format_help(*args, **kwargs)]
        for name, callback in SECTIONS.items():
            if f"--{name}" in self._option_string_actions:
                settings = ArgumentParser(usage=SUPPRESS, add_help=False)
                settings.add_class_arguments(callback, name)
                parts.append(settings.format_help().lstrip())
        return "\n".join(parts)
