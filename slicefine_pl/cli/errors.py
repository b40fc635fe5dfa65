"""Errors that a command reports in one sentence, because the user can correct what caused them."""

USER_ERRORS = (ValueError, OSError, ImportError)  # wrong settings, unreadable files, missing packages


def message_of(error: Exception) -> str:
    """Return an error's message, followed by the notes that were added to it."""
    notes = getattr(error, "__notes__", [])
    return ". ".join([str(error).removesuffix("."), *notes]) if notes else str(error)
