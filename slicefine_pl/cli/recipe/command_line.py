"""Words of a recipe's command line, and the settings that a run has saved."""

from collections.abc import Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

CONFIG = ("--config", "-c")
HEADER = "# lightning.pytorch=="  # first words of a file that Lightning's command line has written


def move_configs_first(arguments: Sequence[str]) -> list[str]:
    """Move ``--config FILE`` before the other flags, so that flags override files, wherever they are.

    Args:
        arguments: Words of the command line, beginning with the subcommand.
    """
    if not arguments or arguments[0].startswith("-"):  # flags of the command line itself, not of a subcommand
        return list(arguments)
    files: list[str] = []
    flags: list[str] = []
    words = iter(arguments[1:])
    for word in words:
        if word in CONFIG:
            files += [word, *islice(words, 1)]
        elif word.startswith(tuple(f"{name}=" for name in CONFIG)):
            files.append(word)
        else:
            flags.append(word)
    return [arguments[0], *files, *flags]


def flag_value(flag: str, arguments: Sequence[str]) -> str | None:
    """Return the last value that the command line gives for a flag."""
    pairs = zip_longest(arguments, arguments[1:])
    given = [after if word == flag else word.removeprefix(f"{flag}=") for word, after in pairs
             if word == flag or word.startswith(f"{flag}=")]  # fmt: skip
    return given[-1] if given else None


def settings_given(section: str, arguments: Sequence[str]) -> list[str]:
    """Return the settings of a section that the command line sets: ``lr`` for ``--model.lr 1e-4`` in ``model``."""
    flags = (word.partition("=")[0] for word in arguments if word.startswith(f"--{section}."))
    return [flag.removeprefix(f"--{section}.").partition(".")[0] for flag in flags]


def gives_version(arguments: Sequence[str]) -> bool:
    """Whether the command line sets the version of the log folder."""
    return any(word.startswith("--trainer.logger") and "version" in word for word in arguments)


def saved_config(checkpoint: Path) -> Path | None:
    """Return the ``config.yaml`` of the fit that wrote a checkpoint, if it is in the folder of that run."""
    places = (folder / "config.yaml" for folder in checkpoint.absolute().parents[:2] if checkpoint.exists())
    return next((path for path in places if path.is_file() and path.read_text("utf-8").startswith(HEADER)), None)


def clear_version(loggers: Any) -> None:
    """Remove the version from the settings of loggers, so that they choose a new folder.

    The saved settings of a run contain its own version, and its files would be overwritten.

    Args:
        loggers: Settings of one logger or of several; anything else stays as it is.
    """
    for each in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(each, Namespace) and "init_args.version" in each:
            each["init_args.version"] = None
