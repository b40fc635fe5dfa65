"""The subcommand ``grid`` of a recipe."""
