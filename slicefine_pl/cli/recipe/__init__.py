"""The command line of a recipe: LightningCLI with the subcommands fit, validate, test and predict."""
