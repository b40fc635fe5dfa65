#!/usr/bin/env python3
"""Build the distributions, and try the wheel where only the base dependencies are installed.

python3 .ci/wheel.py                    # needs uv and a package registry; 1 to 3 minutes with torch in uv's cache
python3 .ci/wheel.py --output dist      # keep the wheel and the source distribution
UV_NO_CONFIG=1 python3 .ci/wheel.py     # the newest dependencies instead of the versions pinned in pyproject.toml

Checks:
- the wheel contains the package's tracked files and its license, nothing else; twine accepts both distributions;
- examples of README.md and docs marked with ``<!-- runs with the base install -->`` run;
- doctests that need no extra pass;
- a missing extra is reported with its install command (tests/helpers/missing_extras.py).
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

from helpers import missing_extras  # noqa: E402

PACKAGE = "slicefine_pl"
MARK = "<!-- runs with the base install -->"
EXAMPLE = re.compile(rf"^{MARK}\s*^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
METADATA = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}

DOCTESTS = """
import doctest, importlib
for name in ("slicefine_pl.callbacks.slicefine", "slicefine_pl.callbacks.sparsity"):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried and not failed, f"{name}: {failed} of {tried} examples failed"
"""


def main() -> None:
    """Build, install, try."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--output", type=Path, help="folder for both distributions, once all checks pass")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        wheel = build(Path(scratch) / "dist")
        check_contents(wheel)
        python = install(wheel, Path(scratch) / "venv")
        try_wheel(python, Path(scratch))
        if given.output:
            shutil.copytree(wheel.parent, given.output, dirs_exist_ok=True)


def build(output: Path) -> Path:
    """Build the source distribution, and the wheel from it; return the wheel."""
    run("uvx", "--from", "build", "pyproject-build", "--installer", "uv", "--outdir", output, ROOT)
    run("uvx", "twine", "check", "--strict", *output.iterdir())
    [wheel] = output.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """Compare the wheel's files with those that git tracks.

    Raises:
        SystemExit: A file is missing, or is there by accident.
    """
    tracked = run("git", "-C", ROOT, "ls-files", PACKAGE).split()
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    information = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    wrong = names ^ {*tracked, *(f"{information}/{name}" for name in METADATA)}
    if wrong:
        raise SystemExit(f"{wheel.name} and the tracked files differ in: {', '.join(sorted(wrong))}")
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1024:.0f} KiB")


def install(wheel: Path, folder: Path) -> Path:
    """Install the wheel without extras into an empty environment; return its Python."""
    run("uv", "venv", "--quiet", folder)
    python = folder / "bin" / "python"
    run("uv", "pip", "install", "--quiet", "--python", python, wheel)
    return python


def try_wheel(python: Path, folder: Path) -> None:
    """Run what a user of the base install runs, away from the source tree."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for number, example in enumerate(EXAMPLE.findall(page.read_text("utf-8")), start=1):
            run(python, "-I", "-W", "ignore", "-c", example, cwd=folder)
            print(f"{page.relative_to(ROOT)}: example {number} runs")
    run(python, "-I", "-W", "ignore", "-c", DOCTESTS, cwd=folder)
    cases = folder / "cases"
    cases.mkdir()
    messages = run(python, "-I", "-W", "ignore", "-c", missing_extras.CASES, cwd=cases)
    missing_extras.check_messages(messages)
    print(*(line for line in messages.splitlines() if "slicefine-pl[" in line), sep="\n")


def run(*command: object, cwd: Path = ROOT) -> str:
    """Run a command and return what it prints; if it fails, show that and stop.

    Raises:
        SystemExit: It failed.
    """
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nfailed with exit code {done.returncode}: {' '.join(words)[:200]}")
    return done.stdout


if __name__ == "__main__":
    main()
