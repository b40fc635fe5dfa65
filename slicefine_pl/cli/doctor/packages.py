"""Versions of the packages. Each one is imported, because an installed package may not fit the others."""

import importlib
import platform
from importlib import metadata

from slicefine_pl import __version__
from slicefine_pl.cli.doctor.finding import LIBRARY_ERRORS, Finding, Verdict, first_line
from slicefine_pl.optional import OPTIONAL

# Each package has the same name on the registry and in Python.
REQUIRED = ("torch", "lightning", "torchmetrics", "safetensors")


def check_packages() -> list[Finding]:
    """Check Python, this package, and the packages that it needs."""
    return [
        Finding("versions", "python", f"{platform.python_version()} on {platform.platform()}"),
        Finding("versions", "slicefine-pl", __version__),
        *(check_package(name) for name in REQUIRED),
        *(check_package(name, extra) for name, extra in OPTIONAL.items()),
    ]


def check_package(name: str, extra: str = "") -> Finding:
    """Check one package.

    Args:
        name: Name on the registry and in Python.
        extra: Extra of slicefine-pl that installs it; empty if every run needs the package.
    """
    remedy = f'pip install "slicefine-pl[{extra}]"' if extra else f"pip install {name}"
    try:
        version = metadata.version(name)
        importlib.import_module(name)
    except metadata.PackageNotFoundError:
        return Finding("versions", name, "not installed", Verdict.ABSENT if extra else Verdict.BROKEN, remedy)
    except LIBRARY_ERRORS as error:
        found = f"{version} cannot be imported: {first_line(error)}"
        return Finding("versions", name, found, Verdict.WARNING if extra else Verdict.BROKEN, f"{remedy}, again")
    return Finding("versions", name, version)
