"""Select layers and parameters by regular expressions, and write lists of names into messages.

A pattern that matches nothing raises an error that lists similar names, so that a typing error is found at once.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import TypeVar

NamePatterns = str | Sequence[str]
"""One regular expression, or several of which any may match."""

T = TypeVar("T")

SIMILAR = 0.6  # ratio from which two names count as similar; the default of difflib.get_close_matches


def compile_patterns(argument: str, patterns: NamePatterns) -> list[re.Pattern[str]]:
    """Compile the patterns of a setting.

    Args:
        argument: Name of the user's argument, for error messages.
        patterns: Regular expressions.

    Raises:
        ValueError: A pattern is not a regular expression.
    """
    expressions = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(expressions, Sequence) or not all(isinstance(each, str) for each in expressions):
        raise ValueError(f"{argument}={patterns!r} is not a regular expression; give a string, or a list of strings.")
    compiled = []
    for pattern in expressions:
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            raise ValueError(f"{argument}={pattern!r} is not a regular expression: {error}.") from error
    return compiled


def match_names(
    argument: str, patterns: NamePatterns, named: Mapping[str, T], noun: str, *, whole: bool = False
) -> dict[str, T]:
    """Select the entries whose name matches any of the patterns.

    Args:
        argument: Name of the user's argument, for error messages.
        patterns: Regular expressions.
        named: All entries, by name.
        noun: What the names belong to, for error messages, such as ``"parameter"``.
        whole: Whether a pattern must match the whole name; otherwise it may be found anywhere in it.

    Returns:
        The selected entries, in the order of ``named``.

    Raises:
        ValueError: A pattern is not a regular expression, or matches no name.
    """
    selected: set[str] = set()
    for expression in compile_patterns(argument, patterns):
        pattern, matches = expression.pattern, expression.fullmatch if whole else expression.search
        hits = {name for name in named if matches(name)}
        if not hits:
            names = f"the whole name of any {noun}" if whole else f"any {noun} name"
            raise ValueError(f"{argument}={pattern!r} does not match {names}; {similar_names(pattern, named)}.")
        selected |= hits
    return {name: value for name, value in named.items() if name in selected}


def patterns_of(names: Iterable[str], among: Iterable[str]) -> list[str]:
    """Short regular expressions that match these names and no others.

    Args:
        names: The names, at least one.
        among: All names.

    Returns:
        One pattern if all names and no others are below one module, or differ only in numbers; otherwise one for each
        group of names that differ only in numbers.
    """
    wanted, others = list(names), list(among)
    groups = defaultdict(list)
    for name in wanted:
        groups[starred(name)].append(name)
    if len(groups) > 1:
        shared = [each[0] for each in zip(*(name.split(".") for name in wanted), strict=False) if len(set(each)) == 1]
        prefix = "^" + r"\.".join(map(re.escape, shared)) + r"\."
        if shared and {name for name in others if re.search(prefix, name)} == set(wanted):
            return [prefix]
    return [_pattern_of(group, others) for group in groups.values()]


def _pattern_of(names: Sequence[str], among: Sequence[str]) -> str:
    """A short regular expression that matches these names, which differ only in numbers, and no others."""
    for number in (r"\d+", None):
        parts = "".join(joined(map(re.escape, names), number)).split(r"\.")
        for first in reversed(range(len(parts))):
            pattern = (r"\." if first else "^") + r"\.".join(parts[first:]) + "$"
            if {name for name in among if re.search(pattern, name)} == set(names):
                return pattern
    return "^(" + "|".join(map(re.escape, names)) + ")$"


def joined(names: Iterable[str], number: str | None) -> Iterator[str]:
    """Merge names that differ only in numbers, piece by piece.

    Yields:
        The common text, and where numbers differ ``number``, or with ``None`` a group of alternatives.
    """
    for column in zip(*(re.split(r"(\d+)", name) for name in names), strict=True):
        values = list(dict.fromkeys(column))
        yield values[0] if len(values) == 1 else number or f"({'|'.join(values)})"


def starred(name: str) -> str:
    """A name with its numbers replaced by asterisks."""
    return re.sub(r"\d+", "*", name)


def similar_names(pattern: str, names: Iterable[str], most: int = 3) -> str:
    """The names most similar to a pattern, for a message. Without a similar name: the last ones, often the head's."""
    listed = [name for name in names if name]
    ratios = {name: _similarity(pattern.lower(), name.lower()) for name in listed}
    similar = [name for name in sorted(listed, key=lambda name: -ratios[name]) if ratios[name] >= SIMILAR]
    if similar:
        return f"similar names: {', '.join(similar[:most])}"
    return f"the last names of this network: {', '.join(listed[-most:]) or 'none'}"


def shortlist(names: Iterable[str], most: int = 3, none: str = "none") -> str:
    """The first few of many names, for a message: ``"a, b, c and 4 more"``; ``none`` if there are no names."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return (", ".join(listed[:most]) or none) + more


def _similarity(pattern: str, name: str) -> float:
    """Similarity in [0, 1] of a pattern to a name, or to as many consecutive parts of it as the pattern has."""
    parts, length = name.split("."), pattern.count(".") + 1
    runs = [".".join(parts[first : first + length]) for first in range(len(parts))]
    matcher = SequenceMatcher(b=pattern)
    best = 0.0
    for run in {name, *runs}:
        matcher.set_seq1(run)
        best = max(best, matcher.ratio())
    return best
