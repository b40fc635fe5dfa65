"""Checks of constructor arguments."""


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
