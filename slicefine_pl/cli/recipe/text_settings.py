"""Settings that are texts: what was written is what arrives, from flags and from YAML files.

jsonargparse reads every value as YAML: ``no`` is false, ``007`` is 7 and ``#1.csv`` is a comment.  Where a setting is a
text or a list of texts, that is undone here.  Only ``null`` leaves such a setting out.
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

from slicefine_pl.cli.recipe.settings import check_yaml

STANDARD = get_loader("yaml")
ANY = "*"  # the section of settings that come without their section's name, as in --data '{source: 007}'
PLAIN = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # every scalar is a text


@dataclass(frozen=True)
class TextSettings:
    """Which settings are texts, and which are lists of texts; by section and name, such as ``data.source``."""

    single: frozenset[str]
    lists: frozenset[str]

    @classmethod
    def of(cls, **sections: Callable[..., Any]) -> "TextSettings":
        """Look at the parameters of classes, by the name of their section."""
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
        """Let jsonargparse read YAML files accordingly, in this process."""
        names = self.single | self.lists
        anywhere = {f"{ANY}.{name.partition('.')[2]}" for name in names}
        set_loader("yaml", partial(_load, names | anywhere), exceptions=(yaml.YAMLError,))

    def rewritten(self, arguments: Sequence[str]) -> list[str]:
        """Arguments of the command line, such that YAML makes of the values of texts what was written.

        A text may begin with a dash: what follows its flag is its value.
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
        """A list of texts with quotes around each; all else as it is."""
        texts = _texts(given) if name in self.lists else None
        return given if texts is None else json.dumps(texts, ensure_ascii=False)


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _texts(written: str) -> list[str] | None:
    """The texts of a YAML list; ``None`` where it is none, or holds more than texts."""
    if not written.lstrip().startswith("["):
        return None
    try:
        check_yaml(written)
        found = yaml.load(written, PLAIN)
    except (yaml.YAMLError, ValueError):
        return None
    return found if isinstance(found, list) and all(isinstance(each, str) for each in found) else None


def _load(names: frozenset[str], stream: str) -> Any:
    """Read YAML; single values that only look like nothing (``#x``, ``~``) are texts."""
    check_yaml(stream)  # jsonargparse would copy what aliases share, for hours
    loaded = STANDARD(stream)
    if loaded is None and "\n" not in stream:
        return stream
    if isinstance(loaded, dict):
        section = "" if any(isinstance(value, dict) for value in loaded.values()) else ANY
        _restore(loaded, yaml.load(stream, PLAIN), names, section)
    return loaded


def _restore(loaded: dict[str, Any], written: Mapping[str, Any], names: frozenset[str], section: str = "") -> None:
    """Put what was written in the place of what YAML made of it, in all sections."""
    for name, value in loaded.items():
        text = written.get(name)
        if isinstance(value, dict) and isinstance(text, dict):
            _restore(value, text, names, name)
        elif f"{section}.{name}" in names and value is not None and _is_flat(text):
            loaded[name] = text


def _is_flat(written: Any) -> bool:
    return isinstance(written, str) or (isinstance(written, list) and all(isinstance(each, str) for each in written))
