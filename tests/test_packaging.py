"""What is said of the package in several files, compared; .ci/wheel.py builds it and tries the result."""

import ast
import importlib
import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from slicefine_pl import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
CHECKS = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text("utf-8"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text("utf-8")
SECTIONS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]


def test_the_package_has_its_types():
    assert (files("slicefine_pl") / "py.typed").is_file()


PUBLIC = [
    "slicefine_pl",
    *(f"slicefine_pl.{path.parent.name}" for path in sorted(ROOT.glob("slicefine_pl/*/__init__.py"))),
]


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_exists(package):
    """Most names are imported on first use, so that neither the linter nor an import notices a stale one."""
    module = importlib.import_module(package)
    assert all(hasattr(module, name) for name in getattr(module, "__all__", []))


def test_every_file_gives_the_same_version():
    """pyproject.toml takes the version from the package."""
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "slicefine_pl/version.py"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == __version__
    assert re.findall(r"^## \[(\d\S*)\]", CHANGELOG, re.MULTILINE)[0] == __version__


def test_the_changelog_has_the_sections_of_keep_a_changelog():
    """Each version has a date, or is marked as not released, and its sections in one order."""
    versions = re.split(r"^## ", CHANGELOG, flags=re.MULTILINE)[1:]
    assert len(versions) >= 2
    for version in versions:
        assert re.match(r"\[\d+\.\d+\.\d+\] - (Unreleased|\d{4}-\d\d-\d\d)\n", version)
        sections = re.findall(r"^### (.*)", version, re.MULTILINE)
        assert sections == [name for name in SECTIONS if name in sections]


def test_tests_run_on_each_python_version_that_is_promised():
    promised = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["project"]["classifiers"]))
    assert PROJECT["project"]["requires-python"] == f">={promised[0]}"
    assert CHECKS["jobs"]["tests"]["strategy"]["matrix"]["python"] == promised
    bounds = {each["python"] for each in CHECKS["jobs"]["bounds"]["strategy"]["matrix"]["include"]}
    assert bounds == {promised[0], promised[-1]}


def test_linter_and_types_run_before_everything_else():
    assert all(job["needs"] == "lint" for name, job in CHECKS["jobs"].items() if name != "lint")
    commands = (ROOT / ".ci/run").read_text("utf-8").splitlines()
    order = [next(place for place, line in enumerate(commands) if word in line) for word in ("ruff", "mypy", "pytest")]
    assert order == sorted(order)


def test_every_script_that_a_workflow_starts_is_there():
    runs = [step.get("run", "") for job in CHECKS["jobs"].values() for step in job["steps"]]
    scripts = set(re.findall(r"\.ci/[\w.]+", " ".join(runs)))
    assert scripts
    assert all((ROOT / script).is_file() for script in scripts)


def texts(path):
    """All string literals of a file; the parts of one f-string joined, with braces for its values."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)


FILES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "slicefine_pl").rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_extra_that_is_named_exists(path):
    """An error message or a page that names an unknown extra would send its reader in circles."""
    found = texts(path) if path.suffix == ".py" else [path.read_text("utf-8")]
    named = {
        name
        for text in found
        for group in re.findall(r"slicefine[-_]pl\[([\w,-]+)\]", text)
        for name in group.split(",")
    }
    assert named <= set(PROJECT["project"]["optional-dependencies"])
