"""The report of ``slicefine diagnose`` as one HTML file that needs nothing else: pictures inside, no links out.

Answers one question: how is the page put together?
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

TITLES = {
    "spectra": "1 · Spectral balance of the weights",
    "energy": "2 · Task energy of the layers' inputs",
    "kernel": "3 · Tangent kernel, all weights and slices",
    "winners": "4 · Slice gradients: is every slice a local winner?",
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
section.plain { background: #f4f7fa; padding: .5rem 1.2rem; border-left: 4px solid #0072B2; }
img { max-width: 100%; height: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; } .kind { font-weight: 600; color: #0072B2; }
code { background: #eee; padding: .1rem .3rem; word-break: break-all; } .scroll { overflow-x: auto; }
"""


def page(
    words: Mapping[str, str],
    captions: Mapping[str, Mapping[str, str]],
    pictures: Mapping[str, bytes],
    tables: Mapping[str, Sequence[Sequence[str]]],
    setup: Mapping[str, Any],
) -> str:
    """Put the page together.

    Args:
        words: Paragraphs in plain words, by heading.
        captions: ``meaning``, ``theory`` and ``measured`` of every picture.
        pictures: PNG files, by the keys of ``TITLES``.
        tables: Rows of cells below a picture, the headings first.
        setup: What was looked at, and how, by name.
    """
    parts = [f"<h1>What slices of {escape(str(setup['model']))} would learn on {escape(str(setup['data']))}</h1>"]
    parts.append('<section class="plain"><h2>In plain words</h2>')
    parts += [f"<p><b>{escape(heading)}</b> {escape(text)}</p>" for heading, text in words.items()]
    parts.append("</section>")
    for name, picture in pictures.items():
        parts.append(f"<h2>{escape(TITLES[name])}</h2>")
        encoded = base64.b64encode(picture).decode("ascii")
        parts.append(f'<img alt="{escape(TITLES[name])}" src="data:image/png;base64,{encoded}">')
        for kind, heading in (("meaning", "Means."), ("theory", "Theory."), ("measured", "Measured.")):
            parts.append(f'<p><span class="kind">{heading}</span> {escape(captions[name][kind])}</p>')
        if name in tables:
            parts.append(_table(tables[name]))
    parts.append("<h2>What was looked at</h2>")
    parts.append(_table([("setting", "value"), *((name, _told(value)) for name, value in setup.items())]))
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>slicefine diagnose</title><style>{STYLE}'
    return f"{head}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"


def _table(rows: Sequence[Sequence[str]]) -> str:
    headings, *body = rows
    made = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in headings) + "</tr>"]
    made += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body]
    return '<div class="scroll"><table>' + "".join(made) + "</table></div>"


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_told(each)}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
