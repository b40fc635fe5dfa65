"""The files under docker/ against what they speak of; building the image is docker/check.sh's part."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())


def copied():
    """What the image takes out of the repository."""
    lines = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY") and "--from" not in line]
    return [name for names in lines for name in names]


def test_the_ignore_file_lets_through_what_is_copied_and_nothing_else():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == set(copied())
    assert all((ROOT / name).exists() for name in copied())


def test_dependencies_are_installed_before_code_is_copied():
    """Otherwise each change of code would build and ship all of CUDA again."""
    steps = [line for line in DOCKERFILE.splitlines() if line.startswith(("COPY", "RUN"))]
    code = next(index for index, step in enumerate(steps) if "slicefine_pl" in step)
    assert [step for step in steps[:code] if "pyproject.toml --all-extras" in step]


def test_packages_that_a_cpu_image_leaves_out_are_packages_that_torch_brings():
    """A renamed package would be installed again without a word."""
    [names] = re.findall(r"cpu\) printf '%s\\n' (.*?) +> /opt/excluded", DOCKERFILE)
    pinned = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]
    assert names.split()
    assert set(names.split()) <= {pin.split("==")[0] for pin in pinned}


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_compose_builds_that_dockerfile_with_arguments_it_has(name):
    service = COMPOSE["services"][name]
    folder = (ROOT / "docker" / service["build"]["context"]).resolve()
    assert (folder / service["build"]["dockerfile"]).samefile(ROOT / "docker" / "Dockerfile")
    assert set(service["build"].get("args", {})) <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_compose_mounts_what_recipes_write_to(name):
    targets = {re.sub(r"\$\{.*?\}", "", volume).split(":")[1] for volume in COMPOSE["services"][name]["volumes"]}
    assert targets == {"/app/runs", "/data", "/home/slicefine/.cache"}
    assert all(folder in DOCKERFILE for folder in targets - {"/data"})


@pytest.mark.parametrize("path", sorted((ROOT / "docker").iterdir()), ids=lambda path: path.name)
def test_no_file_names_a_package_index(path):
    """Which one is asked is the machine's, or the builder's to say."""
    assert not re.findall(r"https?://(?!localhost)\S*(?:simple|whl)\S*", path.read_text())


def test_the_python_is_the_one_of_the_prefix():
    [version] = re.findall(r"^ARG BASE=python:(3\.\d+)-", DOCKERFILE, re.MULTILINE)
    assert set(re.findall(r"python(3\.\d+)/site-packages", DOCKERFILE)) == {version}
    script = (ROOT / "docker" / "check.sh").read_text()
    assert set(re.findall(r"python(3\.\d+)", script)) == {version}
