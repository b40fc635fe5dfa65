"""The command line of a recipe."""
