"""``slicefine doctor``: check what this machine can train with.

Every check tries something tiny. The command starts no run, and opens network connections to this machine only.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from slicefine_pl import __version__
from slicefine_pl.cli.doctor.finding import Finding, Verdict
from slicefine_pl.text_table import text_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``slicefine doctor``."""
    parser.description = (
        "Check packages, devices, communication between processes, video decoding and output folders.\n"
        "The exit code is 0 if training works, else 1."
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the results (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; returns the exit code."""
    findings = examine(arguments.runs)
    print(as_json(findings) if arguments.json else as_table(findings))
    if reasons := [f"{finding.name}: {finding.found}" for finding in broken(findings)]:
        print(f"Training will not work here. {'; '.join(reasons)}.", file=sys.stderr)
        return 1
    return 0


def examine(runs: Path) -> list[Finding]:
    """Run every check.

    Args:
        runs: Folder that recipes write to.
    """
    from slicefine_pl.cli.doctor.devices import check_devices
    from slicefine_pl.cli.doctor.packages import check_packages
    from slicefine_pl.cli.doctor.places import check_shared_memory, check_writable
    from slicefine_pl.cli.doctor.processes import check_processes
    from slicefine_pl.cli.doctor.video import check_video

    places = [check_shared_memory(), check_writable(runs)]
    return [*check_packages(), *check_devices(), *check_processes(), check_video(), *places]


def as_table(findings: Sequence[Finding]) -> str:
    """Format the findings as a table in plain text."""
    sections = []
    for topic, group in groupby(findings, key=lambda finding: finding.topic):
        rows: list[list[str]] = []
        for finding in group:
            mark = f"{finding.verdict}: " if finding.verdict in (Verdict.WARNING, Verdict.BROKEN) else ""
            rows.append(["" if rows else topic, finding.name, mark + finding.found])
            if finding.remedy:
                rows.append(["", "", f"fix: {finding.remedy}"])
        sections.append(rows)
    return text_table(("", "checked", "found"), sections, title=f"slicefine-pl {__version__}")


def as_json(findings: Sequence[Finding]) -> str:
    """Format the findings as JSON: whether training works, then the findings by topic and name."""
    topics: dict[str, dict[str, dict[str, str]]] = {}
    for finding in findings:
        entry = {"found": finding.found, "verdict": str(finding.verdict), "remedy": finding.remedy}
        topics.setdefault(finding.topic, {})[finding.name] = entry
    return json.dumps({"works": not broken(findings), **topics}, indent=1)


def broken(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings that prevent training."""
    return [finding for finding in findings if finding.verdict is Verdict.BROKEN]
