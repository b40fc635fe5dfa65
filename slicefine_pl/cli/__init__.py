"""Command lines: ``run`` turns a module, a data module and a YAML file into a recipe."""

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
