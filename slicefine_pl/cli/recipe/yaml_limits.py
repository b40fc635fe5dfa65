"""Limits of the YAML files that are read.

jsonargparse copies what aliases share, which can take hours, and deeply nested lists exhaust the stack.
"""

import yaml

MAX_VALUES = 100_000  # of a file, with all aliases expanded; a configuration has a few hundred
MAX_DEPTH = 50  # nested lists and mappings


def check_yaml(text: str) -> None:
    """Check that YAML is not nested deeper, and has not more values, than any configuration.

    Only the parser's events are read; no object is built.

    Raises:
        ValueError: The YAML is nested too deeply, has too many values, or contains itself.
        yaml.YAMLError: The text is not YAML.
    """
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = [(None, 0)]  # anchor of each open list or mapping, and its values so far
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        anchor, values = getattr(event, "anchor", None), 0
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((anchor, 0))
            if len(opened) > MAX_DEPTH:
                raise ValueError(
                    f"{_begin(text)} is nested more than {MAX_DEPTH} levels deep; write it with fewer levels."
                )
            continue
        if isinstance(event, yaml.AliasEvent):
            values = sizes.get(event.anchor, MAX_VALUES + 1 if any(event.anchor == each for each, _ in opened) else 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, values = opened.pop()
        elif isinstance(event, yaml.ScalarEvent):
            values = 1
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            sizes[anchor] = values
        holder, before = opened.pop()
        opened.append((holder, before + values))
        if before + values > MAX_VALUES:
            raise ValueError(
                f"{_begin(text)} has more than {MAX_VALUES:,} values with its aliases (*) expanded, which no "
                "configuration needs; write the values without nested aliases."
            )


def _begin(text: str) -> str:
    return f"the YAML that begins with {text[:40]!r}"
