"""The command that proves things on a GPU: what it reports, what it costs when a check crashes or hangs, its errors.

The checks here are made up. Those of the command itself run in the tests marked as slow, at toy size.
"""

import json
import re
import time

import pytest
from helpers import gpu_checks

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import report
from benchmarks.gpu.checks import Check, Outcome, Section, fails
from benchmarks.gpu.sections import SECTIONS
from benchmarks.gpu.worker import outcomes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def checks(*names: str, seconds: float = 30.0) -> list[Check]:
    return [Check(f"{name} {i}", getattr(gpu_checks, name), seconds) for i, name in enumerate(names)]


def section(checks: list[Check], seconds: float = 60.0, must_pass: bool = False) -> Section:
    return Section("Does it work?", seconds, checks, must_pass)


def run(found: dict[str, Section], path, minutes: float = 5.0) -> tuple[bool, dict[str, list[str]]]:
    """Whether the run succeeded, and how its checks ended according to its file."""
    success = command.run(found, "cpu", minutes, path)
    result = json.loads(path.read_text())
    assert result["finished"]
    return success, {name: [row["status"] for row in rows] for name, rows in result["sections"].items()}


@pytest.mark.slow
def test_a_check_that_crashes_or_hangs_costs_only_itself(tmp_path, capsys):
    names = ("passes", "raises", "dies", "hangs", "fails", "lacks", "passes")
    path = tmp_path / "r.json"
    success, statuses = run({"cost": section(checks(*names, seconds=2))}, path)
    assert statuses == {"cost": ["passed", "crashed", "crashed", "cut", "failed", "not here", "passed"]}
    assert not success
    first, raised, died, hung, failed, missing, last = json.loads(path.read_text())["sections"]["cost"]
    assert "illegal memory access" in raised["reason"]
    assert died["reason"] == "Its process ended without a message, with exit code -9."
    assert hung["reason"] == "It was stopped after 2 s."
    assert failed["reason"] == "1 is not 2"
    assert missing["reason"] == "This needs 2:4 tensor cores."
    assert first["figures"]["process"] != last["figures"]["process"]
    printed = capsys.readouterr().out
    assert "cost: 2 passed, 2 crashed, 1 cut, 1 failed, 1 not here" in printed


@pytest.mark.slow
def test_a_section_that_exceeds_its_time_is_cut_and_the_next_one_runs(tmp_path):
    long = section(checks("hangs", "passes", "lacks"), seconds=8)
    success, statuses = run({"long": long, "next": section(checks("passes"))}, tmp_path / "r.json")
    assert statuses == {"long": ["cut", "not run", "not run"], "next": ["passed"]}
    assert success  # what took too long is a gap, not an error


@pytest.mark.parametrize(
    ("status", "must_pass", "failed"),
    [
        ("passed", True, False), ("not here", True, False), ("cut", True, True), ("not run", True, True),
        ("cut", False, False), ("not run", False, False), ("failed", False, True), ("crashed", False, True),
    ],
)  # fmt: skip
def test_what_makes_the_command_fail(status, must_pass, failed):
    assert fails({"s": section([], must_pass=must_pass)}, {"s": [Outcome("c", status)]}) == failed


def test_the_file_is_written_after_every_check(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(command, "write_result", lambda path, result: found.append(result))
    command.run({"s": section(checks("passes", "fails"))}, "cpu", 5, tmp_path / "r.json")
    assert [len(result["sections"]["s"]) for result in found] == [1, 2, 2]
    assert [result["finished"] for result in found] == [False, False, True]


def test_no_process_is_started_when_no_time_is_left():
    [outcome] = outcomes(checks("passes"), "cpu", time.monotonic() + 1)
    assert (outcome.status, outcome.reason) == ("not run", "No time was left.")


def test_names_of_checks_are_unique():
    with pytest.raises(ValueError, match="two"):
        section([Check("two", gpu_checks.passes), Check("two", gpu_checks.fails)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dry-run", "--sections", "wrong"], "invalid choice: 'wrong'"),
        (["--dry-run", "--minutes", "0"], "0 is not a number of minutes above 0; choose 8, for instance."),
        (["--dry-run", "--minutes", "many"], "many is not a number of minutes above 0"),
        (["--dry-run", "--minutes", "nan"], "nan is not a number of minutes above 0"),
        (["--dry-run", "--only", "no such check"], "--only 'no such check' matches no check of right, real, cost."),
        (["--dry-run", "--only", "("], "'(' is not a regular expression"),
        ([], "torch finds no GPU on this machine. Add --dry-run"),
    ],
)
def test_a_wrong_argument_is_one_clear_sentence(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_only_some_checks_are_chosen():
    chosen = command.select(["real", "cost"], re.compile("Llama.*compiled|digits"))
    assert {name: len(section.checks) for name, section in chosen.items()} == {"real": 1, "cost": 3}
    assert command.select(["cost"], None) == {"cost": SECTIONS["cost"]}
    assert command.select(["right"], re.compile("Llama")) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", SECTIONS)
def test_dry_run(name, tmp_path, capsys, monkeypatch):
    """All checks of a section pass at toy size on a CPU, or say what they lack; the report reads the file."""
    path = tmp_path / "result.json"
    with pytest.raises(SystemExit) as stopped:
        command.main(["--dry-run", "--sections", name, "--out", str(path)])
    result = json.loads(path.read_text())
    assert {row["status"] for row in result["sections"][name]} <= {"passed", "not here"}, result
    assert stopped.value.code == 0
    assert list(result["sections"]) == [name]
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["report", str(path)])
    report.main()
    printed = capsys.readouterr().out
    assert all(check.name in printed for check in SECTIONS[name].checks)
