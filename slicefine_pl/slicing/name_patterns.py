"""Regular expressions that are searched in names; a pattern that matches nothing is an error with similar names."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import TypeVar

T = TypeVar("T")

LIKE = 0.6  # likeness from which a name may be the one that was meant; difflib's own choice


def matching(argument: str, patterns: str | Sequence[str], named: Mapping[str, T], noun: str) -> dict[str, T]:
    """The entries of ``named`` whose name any pattern is found in; every pattern must be found in one."""
    matches: dict[str, T] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            hits = {name: value for name, value in named.items() if re.search(pattern, name)}
        except re.error as error:
            raise ValueError(f"{argument}={pattern!r} is not a regular expression: {error}.") from error
        if not hits:
            raise ValueError(f"{argument}={pattern!r} matches no {noun} name; {nearest(pattern, filter(None, named))}.")
        matches.update(hits)
    return matches


def nearest(pattern: str, names: Iterable[str], most: int = 3) -> str:
    """The names most similar to a pattern, for a message; where none is similar, the last ones, often the head's."""
    listed = list(names)
    likeness = {name: _likeness(pattern.lower(), name.lower()) for name in listed}
    near = [name for name in sorted(listed, key=lambda name: -likeness[name]) if likeness[name] >= LIKE]
    if near:
        return f"similar names: {', '.join(near[:most])}"
    return f"the last names of this network: {', '.join(listed[-most:]) or 'none'}"


def _likeness(pattern: str, name: str) -> float:
    """How alike they are, in [0, 1]: the name as a whole, or as many of its parts as the pattern has."""
    parts, length = name.split("."), pattern.count(".") + 1
    runs = [".".join(parts[first : first + length]) for first in range(len(parts))]
    matcher = SequenceMatcher(b=pattern)
    found = 0.0
    for run in {name, *runs}:
        matcher.set_seq1(run)
        found = max(found, matcher.ratio())
    return found
