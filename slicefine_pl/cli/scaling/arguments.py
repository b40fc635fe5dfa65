"""Argument types of the commands about scaling laws."""

import argparse

from slicefine_pl.scaling.units import parse_quantity


def quantity(text: str) -> float:
    """Parse a number such as ``"22M"``; see :func:`slicefine_pl.scaling.units.parse_quantity`.

    Raises:
        argparse.ArgumentTypeError: The text is not a positive number; argparse prints the message.
    """
    try:
        return parse_quantity(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
