"""The subcommand ``grid`` of a recipe: train at several sizes, sparsities and lengths, and fit a scaling law."""
