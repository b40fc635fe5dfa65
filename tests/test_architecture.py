"""Who may import whom, read from the syntax tree: the house rules of CONTRIBUTING.md."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "slicefine_pl"

OURS = {"files", "plain_files", "pretrained", "inputs", "slicing", "sparsity", "analysis", "strategy", "run_length"}
OURS |= {"callbacks", "modules", "data", "cli", "doctor"}
MATHS = {"torch", "numpy", "scipy"}
# For each part: which of our parts, and which other packages, it may import (None: any).
RULES = {
    "files": (set(), set()),
    "plain_files": (set(), {"torch"}),
    "slicing": (set(), MATHS | {"rich"}),
    "sparsity": (set(), MATHS | {"rich"}),
    "analysis": ({"slicing", "files"}, MATHS | {"matplotlib"}),
    "strategy": ({"slicing", "files", "plain_files"}, {"torch", "lightning"}),
    "run_length": (set(), {"lightning"}),
    "callbacks": (
        {"slicing", "sparsity", "analysis", "strategy", "run_length", "files"},
        MATHS | {"lightning", "matplotlib"},
    ),
    "pretrained": (set(), set()),
    "inputs": ({"pretrained", "plain_files"}, {"torch"}),
    "modules": ({"pretrained", "inputs", "run_length", "files", "plain_files"}, None),
    "data": ({"pretrained", "inputs", "files"}, None),
    "cli": (OURS, None),
    "doctor": (set(), {"torch", "numpy", "av", "rich"}),  # it looks at the machine, not at our parts
    "__init__": ({"callbacks", "strategy"}, set()),
}


def imports(path: Path) -> set[str]:
    """Every module name that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.add(str(node.module))
    return names


def part(path: Path) -> str:
    """The floor a file of the package stands on."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def breaches(path: Path) -> list[str]:
    """Imports that the rules of the file's part forbid."""
    own = part(path)
    parts, packages = RULES[own]
    found = []
    for name in sorted(imports(path)):
        top, *below = name.split(".")
        if top == "slicefine_pl":
            if below and below[0] not in parts | {own}:
                found.append(name)
        elif packages is not None and top not in packages | sys.stdlib_module_names:
            found.append(name)
        if top == "pytorch_lightning":
            found.append(f"{name}: its classes are strangers to lightning.pytorch")
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def test_files_were_found():
    assert {part(path) for path in FILES} >= {"slicing", "callbacks", "modules", "data", "cli"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_part_imports_only_what_it_may(path):
    assert breaches(path) == []


@pytest.mark.parametrize("name", ["torch", "lightning", "slicefine_pl.modules"])
def test_the_rules_can_fail(name, tmp_path, monkeypatch):
    """A check that cannot fail proves nothing: slicing may import torch, but neither Lightning nor modules."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    file = tmp_path / "slicing" / "new.py"
    file.parent.mkdir()
    file.write_text(f"def lazy():\n    import {name}\n")
    assert breaches(file) == ([] if name == "torch" else [name])


def test_recipes_are_three_imports_and_a_call():
    recipes = sorted((ROOT / "recipes").glob("*.py"))
    assert recipes
    for path in recipes:
        assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef | ast.For)]
        ours = {name for name in imports(path) if name.startswith("slicefine_pl")}
        assert {name.split(".")[1] for name in ours} <= {"cli", "modules", "data"}, path


def test_nobody_imports_a_recipe_and_no_folder_is_a_junk_drawer():
    everything = [
        path for folder in ("slicefine_pl", "recipes", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ]
    assert not [path for path in everything if any(name.split(".")[0] == "recipes" for name in imports(path))]
    assert not [path for path in everything if path.stem in {"utils", "util", "common", "helpers", "misc"}]
