"""Checks of constructor arguments, so that a wrong one is an error before any work is done."""

from typing import get_args


def check_choice(name: str, value: object, allowed: object) -> None:
    """Check that a setting is one of the values of a ``Literal`` type.

    Raises:
        ValueError: It is not.
    """
    choices = get_args(allowed)
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, choices))}.")


def check_count(name: str, value: int | None, unit: str, *, least: int = 1, optional: bool = False) -> None:
    """Check that an argument is an integer of at least ``least``, or ``None`` if it is optional.

    Args:
        name: Name of the argument.
        value: Its value.
        unit: What it counts, for the message.
        least: Smallest allowed value.
        optional: Whether ``None`` is allowed.

    Raises:
        ValueError: The value is not allowed.
    """
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        choices = f"an integer of at least {least}" + ", or None" * optional
        raise ValueError(f"{name}={value!r} is not a number of {unit}; choose {choices}.")


def check_seed(seed: int) -> None:
    """Check that a seed is an integer of at least 0.

    Raises:
        ValueError: It is not.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed={seed!r} is not a seed; choose an integer of at least 0.")
