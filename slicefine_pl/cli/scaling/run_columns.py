"""Finished training runs, read from columns of a CSV file."""

import argparse

import numpy as np

from slicefine_pl.cli.scaling.csv_columns import RunColumns, read_columns, to_floats
from slicefine_pl.scaling import costs


def read_run_columns(arguments: argparse.Namespace) -> RunColumns:
    """Read the file that the arguments of ``slicefine fit-law`` describe, in single parameters, images or tokens.

    Raises:
        OSError: The file cannot be read.
        ValueError: A column is missing, a cell is not a number, or the file is not a CSV file.
    """
    table = read_columns(arguments.runs)
    columns = {
        "sparsity": arguments.sparsity_column,
        "nonzero_params": arguments.parameters_column,
        "data": arguments.data_column,
        "loss": arguments.loss_column,
    }
    runs = {}
    for name, column in columns.items():
        if column not in table:
            flag = {"nonzero_params": "parameters"}.get(name, name)
            raise ValueError(
                f"column {column!r} ({name}) is not among {', '.join(map(repr, table))}; name it with --{flag}-column."
            )
        runs[name] = to_floats(table[column])
        if not np.isfinite(runs[name]).all():
            row = int(np.flatnonzero(~np.isfinite(runs[name]))[0])
            raise ValueError(
                f"column {column!r}, run {row} contains {table[column][row]!r}; give a number, or remove the run."
            )
    density = 1 - costs.checked_sparsity(runs["sparsity"]) if arguments.dense_parameters else 1.0
    runs["nonzero_params"] = runs["nonzero_params"] * arguments.parameters_factor * density
    runs["data"] = runs["data"] * arguments.data_factor
    return runs
