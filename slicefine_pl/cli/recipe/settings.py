"""Where the settings of a command come from: files first, then flags, wherever they stand on the command line.

Answers two questions: who wins, and is a YAML file what it seems to be?
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

MOST_VALUES = 100_000  # of a YAML file, with all aliases written out; a configuration has some hundred
DEEPEST = 50  # lists and mappings in each other
CONFIG = ("--config", "-c")
HEADER = "# lightning.pytorch=="  # of a file that Lightning's command line has written


def configs_first(arguments: Sequence[str]) -> list[str]:
    """Put ``--config FILE`` before the other flags, so that flags win wherever they stand.

    Args:
        arguments: Of the command line; the first is the subcommand.
    """
    if not arguments or arguments[0].startswith("-"):  # what stands before the subcommand is read before it
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


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The last value that a flag is given on the command line."""
    pairs = zip(arguments, [*arguments[1:], None], strict=True)
    given = [after if word == flag else word.removeprefix(f"{flag}=") for word, after in pairs
             if word == flag or word.startswith(f"{flag}=")]  # fmt: skip
    return given[-1] if given else None


def names_given(section: str, arguments: Sequence[str]) -> list[str]:
    """Settings of a section for which the command line has flags: ``lr`` for ``--model.lr 1e-4`` in ``model``."""
    flags = (word.partition("=")[0] for word in arguments if word.startswith(f"--{section}."))
    return [flag.removeprefix(f"--{section}.").partition(".")[0] for flag in flags]


def settings_of_run(checkpoint: Path) -> Path | None:
    """The ``config.yaml`` that a fit has left for the checkpoints in its folder, where there is one."""
    places = (folder / "config.yaml" for folder in checkpoint.absolute().parents[:2] if checkpoint.exists())
    return next((path for path in places if path.is_file() and path.read_text("utf-8").startswith(HEADER)), None)


def names_version(arguments: Sequence[str]) -> bool:
    """Whether the command line itself says into which version of the log folder to write."""
    return any(word.startswith("--trainer.logger") and "version" in word for word in arguments)


def forget_version(loggers: Any) -> None:
    """Let loggers choose a new folder: the version in the settings of a run is its own, whose files would be replaced.

    Args:
        loggers: Settings of a logger or of several; anything else is left alone.
    """
    for each in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(each, Namespace) and "init_args.version" in each:
            each["init_args.version"] = None


def check_yaml(text: str) -> None:
    """Refuse YAML that is deeper, or stands for more values, than any configuration; nothing is built for it.

    jsonargparse copies what aliases share, for hours, and deep lists exhaust the stack.

    Raises:
        ValueError: It is too deep, has too many values, or contains itself.
        yaml.YAMLError: It is not YAML.
    """
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = [(None, 0)]  # anchor and values so far of each list and mapping
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        anchor, values = getattr(event, "anchor", None), 0
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((anchor, 0))
            if len(opened) > DEEPEST:
                raise ValueError(f"{_begin(text)} is nested more than {DEEPEST} levels deep; write it out flat.")
            continue
        if isinstance(event, yaml.AliasEvent):
            values = sizes.get(event.anchor, MOST_VALUES + 1 if any(event.anchor == each for each, _ in opened) else 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, values = opened.pop()
        elif isinstance(event, yaml.ScalarEvent):
            values = 1
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            sizes[anchor] = values
        holder, before = opened.pop()
        opened.append((holder, before + values))
        if before + values > MOST_VALUES:
            raise ValueError(
                f"{_begin(text)} stands for more than {MOST_VALUES:,} values, which no configuration needs; aliases (*)"
                " that repeat aliases count as often as they stand for them. Write out what is meant."
            )


def _begin(text: str) -> str:
    return f"the YAML that begins with {text[:40]!r}"
