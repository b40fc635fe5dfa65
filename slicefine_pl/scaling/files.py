"""JSON files of scaling laws: ``slicefine fit-law`` writes them, ``slicefine advise`` reads them.

A file contains the coefficients, the ranges of the fitted runs, and the laws of a bootstrap. The published laws are in
the folder ``published``. Their coefficients are the published ones; their bootstrap is ours, from the published runs.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slicefine_pl.scaling.fitting import FittedLaw
from slicefine_pl.scaling.law import COEFFICIENTS, ScalingLaw
from slicefine_pl.scaling.runs import FittedRanges

PUBLISHED = {"vit": "vit_jft4b.json", "t5": "t5_c4.json"}


@dataclass(frozen=True)
class SavedLaw:
    """A law from a file, with what is needed to judge it.

    Attributes:
        law: The law.
        ranges: Ranges of the runs that it was fitted to.
        replicates: Laws fitted to bootstrap samples of the same runs; may be empty.
        statement: Sentence on the coefficients that the runs do not determine.
        source: Origin of the runs, for the reader.
    """

    law: ScalingLaw
    ranges: FittedRanges
    replicates: tuple[ScalingLaw, ...]
    statement: str
    source: str


def law_json(fit: FittedLaw, source: str) -> str:
    """Format a fit as JSON, one line per key.

    :func:`read_law` reads ``law``, ``ranges``, ``replicates``, ``statement`` and ``source``; the rest is for people.

    Args:
        fit: The fitted law.
        source: Origin of the runs, for the reader.
    """
    replicates = [[float(f"{value:.7g}") for value in law.coefficients.values()] for law in fit.replicates]
    content: dict[str, Any] = {"source": source, "statement": fit.statement} | asdict(fit)
    content |= {"ranges": fit.ranges._asdict(), "replicates": replicates}
    lines = (f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in content.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_law(name: str) -> SavedLaw:
    """Read a published law by name, or a law from a file.

    Args:
        name: ``"vit"``, ``"t5"``, or the path of a file that ``slicefine fit-law --json`` wrote.

    Raises:
        ValueError: The file cannot be read or does not contain a law.
    """
    path = Path(__file__).parent / "published" / PUBLISHED[name] if name in PUBLISHED else Path(name)
    try:
        content = json.loads(path.read_text("utf-8"))
        law = ScalingLaw(**content["law"])
        replicates = tuple(
            ScalingLaw(**dict(zip(COEFFICIENTS, values, strict=True)), data_unit=law.data_unit)
            for values in content["replicates"]
        )
        ranges = FittedRanges(
            *((float(low), float(high)) for low, high in (content["ranges"][n] for n in FittedRanges._fields))
        )
        return SavedLaw(law, ranges, replicates, str(content["statement"]), str(content["source"]))
    except OSError as error:
        raise ValueError(
            f"law={name!r} cannot be read ({error.strerror}); give 'vit', 't5' or a file of slicefine fit-law --json."
        ) from error
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"law={name!r} does not contain a law ({error}); write it with slicefine fit-law --json."
        ) from error
