"""Every benchmark that README.md lists can be started."""

import argparse
import importlib
import re

import pytest

from benchmarks.harness import machine, results
from benchmarks.harness.machine import ROOT

README = (ROOT / "benchmarks" / "README.md").read_text()
MODULES = sorted(set(re.findall(r"python -m (benchmarks\.[\w.]+)", README)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", MODULES)
def test_help_of_every_command_is_its_docstring(name, monkeypatch, capsys):
    is_package = (ROOT / name.replace(".", "/")).is_dir()
    module = importlib.import_module(f"{name}.__main__" if is_package else name)
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 0
    assert module.__doc__.splitlines()[0] in capsys.readouterr().out
    assert f"python -m {name}" in module.__doc__


def test_readme_lists_every_command():
    files = [path for path in (ROOT / "benchmarks").rglob("*.py") if "def main(" in path.read_text()]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    assert {name.removesuffix(".__main__") for name in names} == set(MODULES)


def test_the_commit_is_named_by_hand_where_there_is_no_git(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("BENCHMARK_COMMIT", raising=False)
    assert machine.commit() == ""
    monkeypatch.setenv("BENCHMARK_COMMIT", "abc1234")
    assert machine.commit() == "abc1234"


def test_committed_results_need_committed_code(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "commit", lambda: "abc1234-dirty")
    assert results.result_path(str(tmp_path / "new.json")) == tmp_path / "new.json"
    with pytest.raises(argparse.ArgumentTypeError, match="differ from commit abc1234"):
        results.result_path(str(results.RESULTS / "new.json"))
    monkeypatch.setattr(results, "commit", lambda: "abc1234")
    assert results.result_path(str(results.RESULTS / "new.json")) == results.RESULTS / "new.json"
