"""Numbers as people write them: ``"22M"`` read as 22e6, and 22e6 written as ``"22M"``."""

import argparse

SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def quantity(text: str) -> float:
    """A positive number with or without K, M, B (or G), T: ``"22M"`` is 22e6.

    Raises:
        argparse.ArgumentTypeError: The text is no such number.
    """
    factor = SUFFIXES.get(text[-1:].upper(), 1.0)
    try:
        number = float(text if factor == 1.0 else text[:-1]) * factor
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number; write it as 22e6, 22000000 or 22M.")
    return number


def readable(number: float) -> str:
    """A count as people write it, to three significant digits: 85e6 is ``"85M"``, 8.63e19 is ``"8.63e19"``."""
    rounded = float(f"{number:.3g}")
    if not 1e3 <= rounded < 1e15:
        return f"{rounded:.3g}".replace("e+", "e")
    suffix, factor = max(((name, size) for name, size in SUFFIXES.items() if size <= rounded), key=lambda pair: pair[1])
    return f"{rounded / factor:.3g}{suffix}"


def plain(number: float) -> str:
    """A number to three significant digits, without an exponent where it is large: 54600 is ``"54,600"``."""
    rounded = float(f"{number:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:.3g}"


def percent(share: float) -> str:
    """A share in percent: 1.0 is ``"100 %"``."""
    return f"{plain(100 * share)} %"
