"""What the documentation names, exists: files, modules, commands, public classes; and its examples run."""

import ast
import importlib
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HISTORY = {DOCS / "changelog.md", *(DOCS / "experiments").glob("*.md")}  # these name what was there at their time
PAGES = sorted(
    {*DOCS.rglob("*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *ROOT.glob("*/README.md")}
)
CURRENT = [page for page in PAGES if page not in HISTORY]
WORDS = set(re.findall(r"\w+", "".join(path.read_text("utf-8") for path in (ROOT / "slicefine_pl").rglob("*.py"))))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def named(path):
    return str(path.relative_to(ROOT))


def prose(page):
    """The text of a page outside its code blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


def anchors(page):
    """The anchors of a page's headings, as MkDocs makes them."""
    headings = re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE)
    return {slug(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)) for heading in headings}


def slug(heading):
    text = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


def broken_links(page):
    """Links and pictures of a page whose file or anchor does not exist."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        place, _, anchor = unquote(target).partition("#")
        file = (page.parent / place).resolve() if place else page
        if re.match(r"[a-z]+:", target):
            continue
        if not file.exists() or (anchor and anchor not in anchors(file)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page):
    assert list(broken_links(page)) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title\n[a](#a-title) [b](#b) [c](c.md) ![d](page.md#a-title) [e](https://example.org)\n")
    assert list(broken_links(page)) == ["#b", "c.md"]


@pytest.mark.parametrize("page", CURRENT, ids=named)
def test_every_file_that_is_named_exists(page):
    """In code spans, and relative to the repository or to the package: ``slicing/handle.py``."""
    folders = "slicefine_pl|tests|benchmarks|recipes|docker|docs|slicing|sparsity|scaling|analysis|callbacks|modules"
    spans = re.findall(r"`([^`\n]+)`", prose(page)) + [code for _, code in FENCE.findall(page.read_text("utf-8"))]
    paths = re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./*-]*\w", " ".join(spans))
    assert [path for path in paths if not any(any(base.glob(path)) for base in (ROOT, ROOT / "slicefine_pl"))] == []


@pytest.mark.parametrize("page", CURRENT, ids=named)
def test_every_module_and_name_exists(page):
    text = page.read_text("utf-8")
    modules = set(re.findall(r"python -m ((?:benchmarks|slicefine_pl)[\w.]*\w)", text))
    places = {name: ROOT / name.replace(".", "/") for name in modules}
    assert [
        name for name, at in places.items() if not (at.with_suffix(".py").exists() or (at / "__main__.py").exists())
    ] == []
    names = set(re.findall(r"(?<![\w/.-])slicefine_pl(?:\.\w+)+", text)) - modules
    assert [name for name in sorted(names) if not exists(name)] == []


def exists(name):
    """Whether a dotted name is a module, or something in one."""
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return bool(module) and exists(module) and hasattr(importlib.import_module(module), attribute)
    return True


@pytest.mark.parametrize("page", CURRENT, ids=named)
def test_every_function_and_argument_exists(page):
    """In code spans such as ``handle.write()`` or ``slice_model(..., backend="mask")``: words of the package."""
    calls = re.findall(r"`([\w.]+\([^`\n]*\))`", prose(page))
    assert [call for call in calls if not set(re.findall(r"\w+(?=\(|=)", call)) <= WORDS] == []


@pytest.mark.parametrize("page", CURRENT, ids=named)
def test_every_example_imports_what_exists(page):
    for language, code in FENCE.findall(page.read_text("utf-8")):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("slicefine_pl"):
                assert all(exists(f"{node.module}.{alias.name}") for alias in node.names), ast.unparse(node)


MARKED = re.compile(r"^<!-- runs with the base install -->\s*^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = [(page, code) for page in PAGES for code in MARKED.findall(page.read_text("utf-8"))]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "code"), EXAMPLES, ids=[named(page) for page, _ in EXAMPLES])
def test_marked_examples_run(page, code, tmp_path):
    """.ci/wheel.py runs those of README.md again, with the wheel and base dependencies only."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_examples_were_found():
    assert {page.name for page, _ in EXAMPLES} >= {"README.md", "plain-torch.md"}


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert [named(page) for page in DOCS.rglob("*.md") if str(page.relative_to(DOCS)) not in text] == []
