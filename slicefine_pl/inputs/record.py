"""Where input records are stored, and how settings of a data module are compared with them."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from slicefine_pl.files.safe_load import load_plain
from slicefine_pl.pretrained import LIBRARIES, locate, read_config

RECORD_KEY = "input"  # key of the record in checkpoints and in config.json of exports


@dataclass(frozen=True)
class InputRecord:
    """Base class of input records.

    Attributes:
        evaluation_settings: Fields that each evaluation may choose freely. All others must equal those of training.
    """

    evaluation_settings: ClassVar[tuple[str, ...]] = ()

    def as_record(self) -> dict[str, Any]:
        """Return the record as a checkpoint or ``config.json`` stores it."""
        return {RECORD_KEY: asdict(self)}


Input = TypeVar("Input", bound=InputRecord)


def stored_record(source: str) -> Mapping[str, Any] | None:
    """Return the record stored in a checkpoint or an exported folder, or ``None`` if it contains none.

    Args:
        source: Path of a ``.ckpt`` file, or the name or folder of a backbone.
    """
    if source.split("/")[0] in LIBRARIES:
        return None
    if Path(source).is_file() and Path(source).suffix == ".ckpt":
        found = load_plain(source, "checkpoint", mmap=True).get(RECORD_KEY)
    else:
        found = read_config(locate(source)).get(RECORD_KEY)
    return found if isinstance(found, Mapping) else None


def stored_input(source: str, kind: type[Input]) -> Input | None:
    """Return the record stored in a checkpoint or an exported folder, or ``None`` if it contains none.

    Args:
        source: As in :func:`stored_record`.
        kind: Class of the record.

    Raises:
        ValueError: The record is damaged.
    """
    record = stored_record(source)
    return None if record is None else parse_input(record, kind)


def parse_input(record: Mapping[str, Any], kind: type[Input]) -> Input:
    """Turn a stored record into an object.

    Raises:
        ValueError: A field is missing, unknown, or has a value that is not allowed.
    """
    try:
        return kind(**record)
    except TypeError as error:
        names = [field.name for field in fields(kind)]
        raise ValueError(f"input={dict(record)} has other fields than {names}; export the model again.") from error


def resolve_input(
    given: Mapping[str, Any], trained: Input | None, default: Callable[[], Input], *, binding: bool
) -> Input:
    """Combine the settings of a data module with the record of training.

    Settings of the user win, then the record of training, then the default.

    Args:
        given: Settings of the user by name. ``None`` stands for a setting that was left out.
        trained: Record of training; ``None`` if it is not known.
        default: Returns what the backbone expects. It is called only if ``trained`` is ``None``.
        binding: Whether ``given`` must agree with ``trained``. A new training run may choose other settings.

    Raises:
        ValueError: A binding record contradicts a given setting.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if trained is None:
        return replace(default(), **chosen)
    resolved = replace(trained, **chosen)
    for name in chosen if binding else ():
        before, now = getattr(trained, name), getattr(resolved, name)
        if before not in (None, now) and name not in trained.evaluation_settings:
            raise ValueError(
                f"data.{name}={_as_written(now)} contradicts the trained network, which saw "
                f"data.{name}={_as_written(before)}; leave data.{name} out, or train again with it from an exported "
                "folder."
            )
    return resolved


def _as_written(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
