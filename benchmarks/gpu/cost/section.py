"""The checks of the section *cost*: every network, first as it is, then compiled, then on larger batches."""

from collections.abc import Iterator
from functools import partial

from benchmarks.gpu.checks import Check, Section
from benchmarks.gpu.cost.compare import compare
from benchmarks.gpu.cost.table import table
from benchmarks.harness.published import PUBLISHED

SECONDS = 75.0  # of one network


def _checks() -> Iterator[Check]:
    """In the order of importance, because the last ones may find no time."""
    for name, network in PUBLISHED.items():
        yield _check(name, network.batches[0], compiled=False)
    for name, network in PUBLISHED.items():
        yield _check(name, network.batches[0], compiled=True)
    for name, network in PUBLISHED.items():
        for batch in network.batches[1:]:
            yield _check(name, batch, compiled=False)


def _check(network: str, batch: tuple[int, ...], *, compiled: bool) -> Check:
    name = f"{network}, batch {' x '.join(map(str, batch))}{', compiled' if compiled else ''}"
    return Check(name, partial(compare, network=network, batch=batch, compiled=compiled, seconds=SECONDS), SECONDS)


COST = Section(
    question="What does a training step cost on this GPU?",
    seconds=480,
    checks=list(_checks()),
    table=table,
)
