"""Scaling laws in files: what ``slicefine fit-law`` writes and ``slicefine advise`` reads.

Answers one question: which law is meant, what was it fitted to, and which other laws do the same runs allow?  The
published laws lie beside this file in the same format: their coefficients are as published; the bootstrap is ours, of
the runs that were published with them.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slicefine_pl.scaling.law import NAMES, ScalingLaw
from slicefine_pl.scaling.runs import Ranges

if TYPE_CHECKING:
    from slicefine_pl.scaling.fitting import FittedLaw  # imports scipy

PUBLISHED = {"vit": "vit_jft4b.json", "t5": "t5_c4.json"}


@dataclass(frozen=True)
class KnownLaw:
    """A law with what is known of its reliability.

    Attributes:
        law: The coefficients.
        ranges: What it was fitted to.
        replicates: Laws that the same runs allow, from a bootstrap; may be empty.
        statement: Which coefficients the runs do not determine.
        source: Where it comes from.
    """

    law: ScalingLaw
    ranges: Ranges
    replicates: tuple[ScalingLaw, ...]
    statement: str
    source: str


def written(fit: "FittedLaw", source: str) -> dict[str, Any]:
    """A fit as JSON: ``law``, ``ranges``, ``replicates`` and ``statement`` are read again, the rest is for people."""
    told = asdict(fit)
    replicates = [[float(f"{value:.7g}") for value in law.coefficients.values()] for law in fit.replicates]
    return (
        {"source": source, "statement": fit.statement}
        | told
        | {
            "ranges": fit.ranges._asdict(),
            "replicates": replicates,
        }
    )


def text_of(told: dict[str, Any]) -> str:
    """JSON with a line for every key."""
    lines = (f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in told.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_law(name: str) -> KnownLaw:
    """A published law by name, or one in a file.

    Args:
        name: ``"vit"``, ``"t5"``, or a file that ``slicefine fit-law --json`` wrote.

    Raises:
        ValueError: Neither a name nor such a file.
    """
    path = Path(__file__).parent / "published" / PUBLISHED[name] if name in PUBLISHED else Path(name)
    try:
        told = json.loads(path.read_text("utf-8"))
        law = ScalingLaw(**told["law"])
        replicates = tuple(
            ScalingLaw(**dict(zip(NAMES, values, strict=True)), data_unit=law.data_unit)
            for values in told["replicates"]
        )
        ranges = Ranges(*((float(low), float(high)) for low, high in (told["ranges"][n] for n in Ranges._fields)))
        return KnownLaw(law, ranges, replicates, str(told["statement"]), str(told["source"]))
    except OSError as error:
        raise ValueError(
            f"law={name!r} cannot be read ({error.strerror}); give 'vit', 't5' or a file of slicefine fit-law --json."
        ) from error
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"law={name!r} holds no law ({error}); write it with slicefine fit-law --json.") from error
