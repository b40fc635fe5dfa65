"""Settings of type ``str``: they keep the characters that the user wrote, in flags and in YAML files.

jsonargparse reads every value as YAML: ``no`` becomes false, ``007`` becomes 7 and ``#1.csv`` is a comment. This is
undone for settings that are strings or lists of strings. ``null`` is still ``None``.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from jsonargparse import get_loader, set_loader

from slicefine_pl.cli.recipe.yaml_limits import check_yaml

STANDARD = get_loader("yaml")
ANY = "*"  # section of settings that are given without it, as in --data '{source: 007}'
PLAIN = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # every scalar stays a string


@dataclass(frozen=True)
class StringSettings:
    """The settings of type ``str`` and of type list of ``str``, by section and name, such as ``data.source``."""

    single: frozenset[str]
    lists: frozenset[str]

    @classmethod
    def of(cls, **sections: Callable[..., Any]) -> "StringSettings":
        """Collect the settings from the signatures of classes, by the name of their section."""
        single, lists = set(), set()
        for section, owner in sections.items():
            for name, parameter in inspect.signature(owner, eval_str=True).parameters.items():
                kinds = _kinds(parameter.annotation)
                if str in kinds:
                    single.add(f"{section}.{name}")
                if Sequence[str] in kinds or list[str] in kinds:
                    lists.add(f"{section}.{name}")
        return cls(frozenset(single), frozenset(lists))

    def install(self) -> None:
        """Make jsonargparse in this process keep these strings when it reads YAML."""
        names = self.single | self.lists
        anywhere = {f"{ANY}.{name.partition('.')[2]}" for name in names}
        set_loader("yaml", partial(_load, names | anywhere), exceptions=(yaml.YAMLError,))

    def rewritten(self, arguments: Sequence[str]) -> list[str]:
        """Rewrite the command line, so that YAML reads these values as they were written.

        A value may begin with a dash: the word after a flag of these settings is its value.
        """
        rest, found = iter(arguments), []
        for argument in rest:
            flag, separator, value = argument.partition("=")
            name = flag.removeprefix("--").removesuffix("+")  # --data.label_names+=... adds to a list
            if flag.startswith("--") and name in self.single | self.lists:
                given = value if separator else next(rest, None)
                found.append(argument if given is None else f"{flag}={self._value(name, given)}")
            else:
                found.append(argument)
        return found

    def _value(self, name: str, given: str) -> str:
        """A list of strings with each of them quoted; any other value unchanged."""
        strings = _strings(given) if name in self.lists else None
        return given if strings is None else json.dumps(strings, ensure_ascii=False)


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _strings(written: str) -> list[str] | None:
    """The strings of a YAML list; ``None`` if the value is not a list of scalars."""
    if not written.lstrip().startswith("["):
        return None
    try:
        check_yaml(written)
        found = yaml.load(written, PLAIN)
    except (yaml.YAMLError, ValueError):
        return None
    return found if isinstance(found, list) and all(isinstance(each, str) for each in found) else None


def _load(names: frozenset[str], stream: str) -> Any:
    """Read YAML; single values that YAML reads as nothing (``#x``, ``~``) stay strings."""
    check_yaml(stream)
    loaded = STANDARD(stream)
    if loaded is None and "\n" not in stream:
        return stream
    if isinstance(loaded, dict):
        section = "" if any(isinstance(value, dict) for value in loaded.values()) else ANY
        _restore(loaded, yaml.load(stream, PLAIN), names, section)
    return loaded


def _restore(loaded: dict[str, Any], written: Mapping[str, Any], names: frozenset[str], section: str = "") -> None:
    """Replace what YAML has made of these settings by what was written, in all sections."""
    for name, value in loaded.items():
        text = written.get(name)
        if isinstance(value, dict) and isinstance(text, dict):
            _restore(value, text, names, name)
        elif f"{section}.{name}" in names and value is not None and _is_flat(text):
            loaded[name] = text


def _is_flat(written: Any) -> bool:
    return isinstance(written, str) or (isinstance(written, list) and all(isinstance(each, str) for each in written))
