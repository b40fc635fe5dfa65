"""The command lines: ``run`` makes a command of a recipe."""

from slicefine_pl.cli.recipe import run

__all__ = ["run"]
