"""Optional packages: lazy imports of public names, and error messages that name the extra to install.

The base install needs torch, Lightning and torchmetrics. Everything else belongs to an extra of pyproject.toml.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

OPTIONAL = {  # each package of an extra in pyproject.toml, by its name in Python, and the first extra that installs it
    "transformers": "text",
    "pyarrow": "text",
    "datasets": "glue",
    "torchvision": "image",
    "timm": "image",
    "pytorchvideo": "video",
    "av": "video",
    "scipy": "scaling",
    "matplotlib": "plots",
    "jinja2": "plots",
    "jsonargparse": "recipes",
    "rich": "recipes",
}
# These come with transformers and torchvision.
EXTRAS = OPTIONAL | {"tokenizers": "text", "huggingface_hub": "text", "PIL": "image"}


class MissingExtraError(ModuleNotFoundError):
    """An optional package is missing; the message contains the ``pip install`` line."""


@contextmanager
def optional_imports(extra: str | None = None) -> Iterator[None]:
    """Name the extra to install if an import in this block fails because an optional package is missing.

    Args:
        extra: Extra to name; ``None`` takes the one that ``EXTRAS`` gives for the missing package.

    Raises:
        MissingExtraError: The package is missing. An enclosing block does not change the extra.
    """
    try:
        yield
    except MissingExtraError:
        raise
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise MissingExtraError(
            f'the package {package!r} is not installed; run: pip install "slicefine-pl[{extra or EXTRAS[package]}]"',
            name=error.name,
        ) from error


def require(package: str) -> None:
    """Import an optional package now, so that a missing one is reported before it is needed.

    Raises:
        MissingExtraError: The package is missing.
    """
    with optional_imports():
        import_module(package)


def lazy_names(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a package whose public names are imported when they are first used (PEP 562).

    Args:
        package: ``__name__`` of the package.
        places: Module that defines each public name. A module below ``text``, ``image`` or ``video`` names that extra
            if an optional package is missing.
    """

    def __getattr__(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        extra = next((part for part in places[name].split(".") if part in ("text", "image", "video")), None)
        with optional_imports(extra):
            value = getattr(import_module(places[name]), name)
        vars(sys.modules[package])[name] = value
        return value

    return __getattr__
