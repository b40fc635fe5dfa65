"""Griffe extension: links for Sphinx roles, such as ``:func:`slice_model```, which mkdocstrings would print as they stand.

A target that has no place in the API reference becomes plain code.
"""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod|obj):`(~?)([\w.]+)`")


class SphinxRoles(griffe.Extension):
    """Rewrite the docstring of each object when it is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replace every role in the docstring of ``obj``."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(lambda role: link(obj, role[2], short=bool(role[1])), obj.docstring.value)


def link(obj: griffe.Object, target: str, short: bool) -> str:
    """An optional cross-reference to ``target``, as seen from ``obj``."""
    try:
        path = obj.resolve(target)
    except griffe.NameResolutionError:
        path = target
    text = target.rpartition(".")[2] if short or target.startswith("slicefine_pl.") else target
    return f'<autoref optional identifier="{path}"><code>{text}</code></autoref>'
