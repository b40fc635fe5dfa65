"""Command lines: the console command ``slicefine``, and ``run``, the main function of a recipe.

``slicefine`` has the subcommands ``advise``, ``fit-law``, ``diagnose`` and ``doctor``. A recipe is a script that
passes a LightningModule class, a LightningDataModule class and a YAML file of defaults to ``run``.
"""

from typing import TYPE_CHECKING

from slicefine_pl.optional import lazy_names

if TYPE_CHECKING:
    from slicefine_pl.cli.recipe.run import run
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "run": "slicefine_pl.cli.recipe.run",
        },
    )

__all__ = ["run"]
