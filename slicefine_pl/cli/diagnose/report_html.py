"""The report of ``slicefine diagnose`` as one HTML file, without links to other files."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slicefine_pl.optional import optional_imports
from slicefine_pl.scaling.units import format_percent

TEMPLATE = Path(__file__).with_name("report.html.jinja")
TITLES = {
    "spectra": "1 · Spectral balance of the weights",
    "energy": "2 · Task energy of the layers' inputs",
    "kernel": "3 · Tangent kernel, all weights and slices",
    "winners": "4 · Slice gradients: is every slice a local winner?",
}
STEP_COLUMNS = (
    *("step on", "what", "step size", "parameters", "gradient energy"),
    *("predicted", "decrease", "held out", "± error"),
)


def render_page(
    paragraphs: Mapping[str, str],
    captions: Mapping[str, Mapping[str, str]],
    plots: Mapping[str, bytes],
    steps: Sequence[Sequence[str]],
    setup: Mapping[str, Any],
) -> str:
    """Render the page.

    Args:
        paragraphs: Conclusions, by heading.
        captions: ``meaning``, ``theory`` and ``measured`` of every plot.
        plots: PNG files, by the keys of ``TITLES``.
        steps: Rows of the table below the last plot, the headings first.
        setup: What was measured, and how, by name.

    Raises:
        ModuleNotFoundError: Jinja is not installed.
    """
    with optional_imports():
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE.name).render(
        titles=TITLES,
        paragraphs=paragraphs,
        captions=captions,
        images={name: base64.b64encode(plot).decode("ascii") for name, plot in plots.items()},
        steps=steps,
        setup=setup,
        settings=[(name, _format(value)) for name, value in setup.items()],
    )


def step_table(numbers: Mapping[str, Any]) -> list[Sequence[str]]:
    """Return one row for every gradient step, the headings first.

    Args:
        numbers: The network's numbers, from ``to_json_values``.
    """
    found = numbers["slice_gradients"]
    rows: list[Sequence[str]] = [STEP_COLUMNS]
    for step in [found["everything"], found["together"], *found["layers"], *found["slices"], *found["full"]]:
        share = [format_percent(step[name]) for name in ("parameters", "energy")]
        values = [f"{step[name]:.2e}" for name in ("predicted", "decrease", "held_out", "held_out_error")]
        what = step["kind"] if not step["indices"] else f"{len(step['indices'])} {step['kind']}s"
        rows.append([step["name"], what, f"{step['lr']:.3g}", *share, *values])
    return rows


def _format(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_format(each)}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
