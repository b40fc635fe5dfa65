"""The result of one check of ``slicefine doctor``."""

from dataclasses import dataclass
from enum import StrEnum

# What a package that does not fit may raise; torch reports by an assertion that it has no CUDA.
LIBRARY_ERRORS = (ImportError, OSError, RuntimeError, AttributeError, ValueError, AssertionError)
GIB = 2**30


class Verdict(StrEnum):
    """What a finding means for a run."""

    FINE = "fine"
    ABSENT = "absent"  # optional, and not installed
    WARNING = "warning"  # some runs will be slow or will fail
    BROKEN = "broken"  # training does not work


@dataclass(frozen=True)
class Finding:
    """One row of the table.

    Attributes:
        topic: Group of rows, e.g. ``"versions"``.
        name: What was checked.
        found: What was found.
        verdict: What it means.
        remedy: What to do about it; empty if there is nothing to do.
    """

    topic: str
    name: str
    found: str
    verdict: Verdict = Verdict.FINE
    remedy: str = ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; some libraries add many lines of advice."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
