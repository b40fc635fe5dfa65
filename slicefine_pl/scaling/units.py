"""Parse and format large numbers: ``"22M"`` is 22e6."""

SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def parse_quantity(text: str) -> float:
    """Parse a positive number with an optional suffix K, M, B (or G) or T: ``"22M"`` is 22e6.

    Raises:
        ValueError: The text is not a positive number.
    """
    factor = SUFFIXES.get(text[-1:].upper(), 1.0)
    try:
        number = float(text if factor == 1.0 else text[:-1]) * factor
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise ValueError(f"{text!r} is not a positive number; write it as 22e6, 22000000 or 22M.")
    return number


def format_count(number: float) -> str:
    """Format a count to three significant digits: 85e6 is ``"85M"``, 8.63e19 is ``"8.63e19"``."""
    rounded = float(f"{number:.3g}")
    if not 1e3 <= rounded < 1e15:
        return f"{rounded:.3g}".replace("e+", "e")
    suffix, factor = max(((name, size) for name, size in SUFFIXES.items() if size <= rounded), key=lambda pair: pair[1])
    return f"{rounded / factor:.3g}{suffix}"


def format_number(number: float) -> str:
    """Format a number to three significant digits, without an exponent if it is large: 54600 is ``"54,600"``."""
    rounded = float(f"{number:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:.3g}"


def format_percent(share: float) -> str:
    """Format a share as a percentage: 1.0 is ``"100 %"``."""
    return f"{format_number(100 * share)} %"
