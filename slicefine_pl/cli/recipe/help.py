"""The help of a recipe, with the settings of slices and pruning spelled out.

jsonargparse shows the settings of a class that may be ``null`` only on a second call, ``--slicefine.help``.
"""

from argparse import SUPPRESS
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser

from slicefine_pl.callbacks import SliceFineCallback, SparsityCallback

SECTIONS: dict[str, type[Callback]] = {"slicefine": SliceFineCallback, "sparsity": SparsityCallback}


class RecipeParser(LightningArgumentParser):
    """A parser of which ``--help`` ends with the settings of ``--slicefine`` and ``--sparsity``, flag by flag."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Return the whole help."""
        parts = [super().format_help(*args, **kwargs)]
        for name, callback in SECTIONS.items():
            if f"--{name}" in self._option_string_actions:
                settings = ArgumentParser(usage=SUPPRESS, add_help=False)
                settings.add_class_arguments(callback, name)
                parts.append(settings.format_help().lstrip())
        return "\n".join(parts)
