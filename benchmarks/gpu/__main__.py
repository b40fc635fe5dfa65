"""Prove on one GPU, within minutes and without a network, that slices are right, what they cost, and what they learn.

python -m benchmarks.gpu --out FILE
python -m benchmarks.gpu --sections right --minutes 2
python -m benchmarks.gpu --only "Llama.*compiled" --out FILE
python -m benchmarks.gpu --dry-run

Needs torch, transformers, lightning, peft and timm; the package itself need not be installed. Every section has a time
limit of its own, and checks run in processes of their own: one that crashes or hangs costs the others nothing. What is
known is printed at once, and written to the file after every check. ``--dry-run`` makes all checks at toy size on a
CPU; what it times means nothing.

The exit status is 0 if nothing crashed and nothing was wrong, and every check of the section ``right`` was made. A goal
for a cost that is missed is reported, and is not an error.
"""

import argparse
import math
import re
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch

from benchmarks.gpu.checks import Outcome, Section, fails
from benchmarks.gpu.report import as_result, line, summary
from benchmarks.gpu.sections import SECTIONS
from benchmarks.gpu.worker import outcomes
from benchmarks.harness.machine import machine
from benchmarks.harness.results import argument_parser, result_path, write_result

MINUTES = 8.0


def run(sections: Mapping[str, Section], device: str, minutes: float, out: Path | None) -> bool:
    """Make all checks, print what is found, and write it to a file after every check.

    Args:
        sections: In the order in which they run.
        device: ``"cuda"`` or ``"cpu"``.
        minutes: Time limit of the whole run. Each section has its own as well.
        out: JSON file; ``None`` writes none.

    Returns:
        Whether the run succeeded.
    """
    described = {**machine(device), "minutes": minutes}
    print(" · ".join(f"{name} {value}" for name, value in described.items()), flush=True)
    end = time.monotonic() + 60 * minutes
    found: dict[str, list[Outcome]] = {}
    for name, section in sections.items():
        print(f"\n{name}: {section.question}", flush=True)
        found[name] = []
        deadline = min(end, time.monotonic() + section.seconds)
        for outcome in outcomes(section.checks, device, deadline):
            found[name].append(outcome)
            print(line(outcome, section), flush=True)
            write_result(out, as_result(described, found, finished=False))
    write_result(out, as_result(described, found, finished=True))
    print("", *summary(found), sep="\n", flush=True)
    return not fails(sections, found)


def positive(text: str) -> float:
    """The argument of ``--minutes``."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(
            f"{text} is not a number of minutes above 0; choose {MINUTES:g}, for instance."
        )
    return minutes


def pattern(text: str) -> re.Pattern[str]:
    """The argument of ``--only``."""
    try:
        return re.compile(text)
    except re.error as reason:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression ({reason}).") from reason


def select(names: Collection[str], only: re.Pattern[str] | None) -> dict[str, Section]:
    """The named sections with the checks that ``only`` matches, as far as any is left."""
    chosen = {name: section for name, section in SECTIONS.items() if name in names}
    if only is None:
        return chosen
    found = {
        name: replace(section, checks=[check for check in section.checks if only.search(check.name)])
        for name, section in chosen.items()
    }
    return {name: section for name, section in found.items() if section.checks}


def _stop(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # unlike the default, ends the process that is at work


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--dry-run", action="store_true", help="all checks at toy size on a CPU")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--minutes", type=positive, default=MINUTES, help="time limit of all (default: %(default)g)")
    parser.add_argument("--out", type=result_path, help="JSON file of the results")
    parser.add_argument("--only", type=pattern, help="checks whose names this regular expression matches, anywhere")
    chosen = parser.parse_args(arguments)
    if not chosen.dry_run and not torch.cuda.is_available():
        parser.error("torch finds no GPU on this machine. Add --dry-run to make all checks at toy size on a CPU.")
    signal.signal(signal.SIGTERM, _stop)
    sections = select(chosen.sections, chosen.only)
    if not sections:
        parser.error(f"--only {chosen.only.pattern!r} matches no check of {', '.join(chosen.sections)}.")
    sys.exit(0 if run(sections, "cpu" if chosen.dry_run else "cuda", chosen.minutes, chosen.out) else 1)


if __name__ == "__main__":
    main()
