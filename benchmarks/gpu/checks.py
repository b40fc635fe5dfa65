"""What the command consists of: sections, and their checks.

A check is a function that takes the device, ``"cuda"`` or ``"cpu"``, and returns figures. On a CPU it works at toy
size. It raises ``AssertionError`` if something is wrong, and ``NotHereError`` if it cannot be made on this device. Any
other exception counts as a crash, and the remaining checks run in a new process.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.harness.results import Row

Status = Literal["passed", "failed", "crashed", "cut", "not run", "not here"]
CHECK_SECONDS = 30.0


class NotHereError(Exception):
    """A check cannot be made on this device or with these packages; the message says why."""


@dataclass(frozen=True)
class Check:
    """One question to the device.

    Attributes:
        name: Name in the results, unique within its section.
        run: Takes the device and returns figures. A function of a module, or a ``partial`` of one, because it is sent
            to another process.
        seconds: Time limit.
    """

    name: str
    run: Callable[[str], Row]
    seconds: float = CHECK_SECONDS


@dataclass(frozen=True)
class Outcome:
    """What became of a check.

    Attributes:
        check: Its name.
        status: ``"passed"``, ``"failed"`` (an assertion), ``"crashed"`` (its process ended), ``"cut"`` (out of time),
            ``"not run"`` (no time was left) or ``"not here"`` (this device or its packages lack something).
        seconds: How long it took.
        reason: Why it did not pass.
        figures: What it measured.
    """

    check: str
    status: Status
    seconds: float = 0.0
    reason: str = ""
    figures: Row = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """Checks that answer one question.

    Attributes:
        question: What the section proves.
        seconds: Time limit of the whole section.
        checks: In the order in which they run, the most important ones first.
        must_pass: Whether the command fails if a check was cut or did not run.
        table: Formats the figures of a check for the terminal.
    """

    question: str
    seconds: float
    checks: Sequence[Check]
    must_pass: bool = False
    table: Callable[[Row], str] = lambda figures: ""

    def __post_init__(self) -> None:
        names = [check.name for check in self.checks]
        if len(names) != len(set(names)):
            raise ValueError(f"Two checks of a section have the same name: {sorted(names)}. Give each its own.")


def fails(sections: Mapping[str, Section], outcomes: Mapping[str, Sequence[Outcome]]) -> bool:
    """Whether the command must report failure: a wrong result, a crash, or a gap where every check must pass."""
    wrong = {"failed", "crashed"}
    return any(
        outcome.status in (wrong | {"cut", "not run"} if sections[name].must_pass else wrong)
        for name, found in outcomes.items()
        for outcome in found
    )
