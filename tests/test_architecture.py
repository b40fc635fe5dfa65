"""Who may import whom, read from the syntax tree; and what an import loads."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "slicefine_pl"

MATHS = {"torch", "numpy"}
# For each part of the package: which other parts, and which packages, it may import. The parts are listed from the
# lowest to the highest: each may import only parts before it.
RULES: dict[str, tuple[set[str], set[str]]] = {
    "version": (set(), set()),
    "optional": (set(), set()),
    "arguments": (set(), set()),
    "text_table": (set(), set()),
    "network": (set(), {"torch"}),
    "files": (set(), {"torch"}),
    "pretrained": (set(), set()),
    "trainer_callbacks": (set(), {"lightning"}),
    "run_length": ({"trainer_callbacks"}, {"lightning"}),
    "inputs": ({"pretrained", "files"}, set()),
    "slicing": (
        {"version", "optional", "arguments", "text_table", "network", "files"},
        {"torch", "safetensors", "huggingface_hub"},
    ),
    "sparsity": ({"text_table", "network"}, {"torch"}),
    "scaling": ({"optional"}, {"numpy", "scipy"}),
    "analysis": ({"slicing", "files", "network"}, MATHS | {"matplotlib"}),
    "strategy": ({"slicing", "network", "files"}, {"torch", "lightning"}),
    "callbacks": (
        {
            "arguments",
            "optional",
            "slicing",
            "sparsity",
            "analysis",
            "strategy",
            "trainer_callbacks",
            "run_length",
            "files",
            "network",
        },
        MATHS | {"lightning", "matplotlib"},
    ),
    "modules": (
        {"optional", "pretrained", "inputs", "run_length", "files", "network", "slicing"},
        MATHS | {"lightning", "torchmetrics"} | {"pytorchvideo", "safetensors", "timm", "torchvision", "transformers"},
    ),
    "data": (
        {"arguments", "optional", "pretrained", "inputs", "files"},
        MATHS
        | {"lightning"}
        | {"PIL", "av", "datasets", "pyarrow", "timm", "tokenizers", "torchvision", "transformers"},
    ),
    "__init__": ({"version", "optional", "slicing", "callbacks", "strategy"}, set()),
    "cli": (
        {"optional", "text_table", "network", "files", "pretrained", "inputs", "slicing", "sparsity", "scaling"}
        | {"analysis", "strategy", "trainer_callbacks", "callbacks", "modules", "data"},
        MATHS
        | {"lightning", "jinja2", "jsonargparse", "matplotlib", "yaml"}
        | {"av", "safetensors", "timm", "torchvision", "transformers"},
    ),
}


def imported_names(path: Path) -> set[str]:
    """Every module or name that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def part(path: Path) -> str:
    """The part of the package that a file belongs to: its folder, or its own name at the top."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def breaches(path: Path) -> list[str]:
    """Imports that the rules of the file's part forbid."""
    own = part(path)
    parts, packages = RULES[own]
    found = []
    for name in sorted(imported_names(path)):
        top, *below = name.split(".")
        if top == "slicefine_pl":
            if below and below[0] not in parts | {own, "__version__"}:
                found.append(name)
        elif top not in packages | sys.stdlib_module_names:
            found.append(name)
        if top == "pytorch_lightning":
            found.append(f"{name}: its classes differ from those of lightning.pytorch")
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    """The name under which a file of the package is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_files_were_found():
    assert {part(path) for path in FILES} == set(RULES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_part_imports_only_what_it_may(path):
    assert breaches(path) == []


@pytest.mark.parametrize("own", RULES)
def test_the_rules_allow_only_what_a_part_imports(own):
    names = [name.split(".") for path in FILES if part(path) == own for name in imported_names(path)]
    parts, packages = RULES[own]
    assert parts <= {below[0] for top, *below in names if top == "slicefine_pl" and below}
    assert packages <= {top for top, *_ in names}


@pytest.mark.parametrize("name", ["torch", "lightning", "slicefine_pl.modules"])
def test_the_rules_can_fail(name, tmp_path, monkeypatch):
    """A check that cannot fail proves nothing: slicing may import torch, but neither Lightning nor modules."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    file = tmp_path / "slicing" / "new.py"
    file.parent.mkdir()
    file.write_text(f"def lazy():\n    import {name}\n")
    assert breaches(file) == ([] if name == "torch" else [name])


def test_no_part_imports_a_part_above_it():
    """Each part may import only parts that are listed before it in ``RULES``."""
    order = list(RULES)
    assert not [
        (own, other) for own, (parts, _) in RULES.items() for other in parts if order.index(other) >= order.index(own)
    ]


def test_files_do_not_import_each_other_in_a_circle():
    """Imports inside functions count: a circle that is only broken at run time is still a circle."""
    modules = {module_name(path): path for path in FILES}
    graph = {name: (imported_names(path) & modules.keys()) - {name} for name, path in modules.items()}
    assert sum(map(len, graph.values())) > len(modules)  # the graph has edges
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


HEAVY = ("lightning", "torchmetrics", "torchvision", "transformers", "pandas", "scipy", "matplotlib", "rich")


@pytest.mark.parametrize(
    ("name", "unwanted"),
    [
        ("slicefine_pl", (*HEAVY, "torch", "numpy")),
        ("slicefine_pl.slicing", HEAVY),
        ("slicefine_pl.sparsity", HEAVY),
        ("slicefine_pl.scaling", (*HEAVY, "torch")),
        ("slicefine_pl.cli.main", (*HEAVY, "torch", "numpy")),
        ("slicefine_pl.cli.scaling.advise", (*HEAVY, "torch")),
        ("slicefine_pl.cli.diagnose.command", (*HEAVY, "torch", "numpy")),
        ("slicefine_pl.cli.doctor.command", (*HEAVY, "torch", "numpy")),
    ],
)
def test_imports_stay_light(name, unwanted):
    """A fresh interpreter imports one package, and no heavy library that it does not need."""
    code = f"import sys, {name}; print(*sorted({{each.partition('.')[0] for each in sys.modules}} & set({unwanted!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_recipes_are_three_imports_and_a_call():
    recipes = sorted((ROOT / "recipes").glob("*.py"))
    assert recipes
    for path in recipes:
        assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef | ast.For)]
        ours = {name for name in imported_names(path) if name.startswith("slicefine_pl")}
        assert {name.split(".")[1] for name in ours} <= {"cli", "modules", "data"}, path


def test_nobody_imports_a_recipe_and_no_folder_is_a_junk_drawer():
    everything = [
        path for folder in ("slicefine_pl", "recipes", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ]
    assert not [path for path in everything if any(name.split(".")[0] == "recipes" for name in imported_names(path))]
    assert not [path for path in everything if path.stem in {"utils", "util", "common", "helpers", "misc"}]
