"""Griffe extension: docstrings as written in the source, converted to Markdown for the API reference.

- A Sphinx role, such as ``:func:`slice_model```, becomes a link; plain code if the target is not in the API reference.
- A page, such as ``docs/limits.md``, becomes a link.
- ``Shapes:``, ``Source:`` and paragraphs with a bold first word begin on a line of their own.
- ``Example:`` with prompts becomes the section ``Examples:``.
"""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod|obj):`(~?)([\w.]+)`")
PAGE = re.compile(r"\bdocs/([\w/-]+)\.md\b")
SUBSTITUTIONS = [
    (re.compile(r"\n(?=\*\*[A-Z][^*\n]*\.\*\*)"), "\n\n"),
    (re.compile(r"\n+(Shapes|Source):\s*"), r"\n\n**\1:** "),
    (re.compile(r"^Example:(?=\n\s+>>>)", re.MULTILINE), "Examples:"),
    (PAGE, r"[\1](../\1.md)"),  # from docs/api/*.md
]


class Docstrings(griffe.Extension):
    """Rewrite the docstring of each object when it is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Apply all rules to the docstring of ``obj``."""
        if obj.docstring:
            text = ROLE.sub(lambda role: link(obj, role[2], short=bool(role[1])), obj.docstring.value)
            for pattern, replacement in SUBSTITUTIONS:
                text = pattern.sub(replacement, text)
            obj.docstring.value = text


def link(obj: griffe.Object, target: str, short: bool) -> str:
    """An optional cross-reference to ``target``, as seen from ``obj``."""
    try:
        path = obj.resolve(target)
    except griffe.NameResolutionError:
        path = target
    text = target.rpartition(".")[2] if short or target.startswith("slicefine_pl.") else target
    return f'<autoref optional identifier="{path}"><code>{text}</code></autoref>'
