"""Print what ``python -m benchmarks.gpu --out FILE`` wrote.

python -m benchmarks.gpu.report FILE
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu.checks import Outcome, Section
from benchmarks.gpu.sections import SECTIONS
from benchmarks.harness.results import Row, argument_parser, read_result

WIDTH = 60  # of a check's name


def line(outcome: Outcome, section: Section) -> str:
    """What became of one check: a line, its reason, and a table of its figures."""
    head = f"  {outcome.check:<{WIDTH}}  {outcome.status:<8}  {outcome.seconds:6.1f} s"
    below = "\n".join(
        filter(None, [outcome.reason.rstrip(), section.table(outcome.figures) if outcome.figures else ""])
    )
    return "\n".join([head, *(f"      {each}".rstrip() for each in below.splitlines())])


def summary(outcomes: Mapping[str, Sequence[Outcome]]) -> Iterator[str]:
    """How many checks of each section ended in which way."""
    for name, found in outcomes.items():
        counts: dict[str, int] = {}
        for outcome in found:
            counts[outcome.status] = counts.get(outcome.status, 0) + 1
        yield f"{name}: " + ", ".join(f"{count} {status}" for status, count in counts.items())


def as_result(described: Row, outcomes: Mapping[str, Sequence[Outcome]], *, finished: bool) -> Row:
    """The content of a result file."""
    sections = {name: [asdict(outcome) for outcome in found] for name, found in outcomes.items()}
    return {"machine": described, "finished": finished, "sections": sections}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("result", type=Path, help="JSON file")
    result = read_result(parser.parse_args().result)
    print("\n".join(f"{name}: {value}" for name, value in result["machine"].items()))
    outcomes = {name: [Outcome(**row) for row in rows] for name, rows in result["sections"].items()}
    for name, found in outcomes.items():
        print(f"\n{name}: {SECTIONS[name].question}")
        print("\n".join(line(outcome, SECTIONS[name]) for outcome in found))
    print("", *summary(outcomes), sep="\n")
    if not result["finished"]:
        print("The run was stopped before its end.")


if __name__ == "__main__":
    main()
