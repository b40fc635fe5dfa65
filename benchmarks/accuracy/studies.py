"""The methods and studies of the accuracy benchmark, read from ``studies.yaml`` and validated."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

SLICES = ("column", "row", "alternate")
SETTINGS: dict[str, tuple[str | int, ...] | None] = {  # allowed values; None: a whole number above 0
    "rank": None,
    "layers": ("all", "query_value"),
    "interval": None,
    "order": ("random", "sweep", "importance"),
    "position": ("random", "first", "last"),
    "weights": ("pretrained", "random"),
    "lr_scale": (1, "auto"),
    "basis": ("standard", "random", "gradient", "pca"),
}
ALLOWED: dict[str, tuple[str, ...]] = {  # settings of each kind; kinds in the order of the report's tables
    **dict.fromkeys(("probe", "bitfit"), ("weights",)),
    **dict.fromkeys(("lora", "dora"), ("rank", "layers", "weights")),
    **dict.fromkeys(SLICES, tuple(SETTINGS)),
    "full": ("weights",),
}


@dataclass(frozen=True)
class MethodConfig:
    """One method; ``studies.yaml`` explains the settings.

    Attributes:
        kind: What is trained, a key of ``ALLOWED``.
        rank: Rank of the adapter or slice; 1 for kinds without.
        layers: Layers that get an adapter or slice.
        interval: Optimizer steps between moves of the slices; ``None`` if they do not move.
        order: How moving slices choose their next position.
        position: Where slices lie that do not move.
        weights: Weights at the start.
        lr_scale: As in :func:`slicefine_pl.slicing.slice_model`.
        basis: Along what slices lie, as there.
    """

    kind: str
    rank: int = 1
    layers: str = "all"
    interval: int | None = None
    order: str = "random"
    position: str | None = None
    weights: str = "pretrained"
    lr_scale: Any = 1
    basis: str = "standard"

    @classmethod
    def read(cls, name: str, settings: Mapping[str, Any]) -> "MethodConfig":
        """Make a method of its entry in the file.

        Raises:
            ValueError: A setting is unknown, missing, out of range, or contradicts another one.
        """
        kind, given = settings.get("kind"), {key: value for key, value in settings.items() if key != "kind"}
        if kind not in ALLOWED:
            raise ValueError(f"{name!r}: kind={kind!r} does not exist; choose one of {', '.join(ALLOWED)}.")
        for setting, value in given.items():
            if setting not in ALLOWED[kind]:
                allowed = ", ".join(ALLOWED[kind])
                raise ValueError(f"{name!r}: {kind} does not have the setting {setting!r}; choose from {allowed}.")
            choices = SETTINGS[setting]
            if not (type(value) is int and value > 0 if choices is None else value in choices):
                expected = "a whole number > 0" if choices is None else " or ".join(map(str, choices))
                raise ValueError(f"{name!r}: {setting}={value!r} is not allowed; use {expected}.")
        if "rank" in ALLOWED[kind] and "rank" not in given:
            raise ValueError(f"{name!r}: rank is missing; add rank: 16, for instance.")
        standard = given.get("basis", "standard") == "standard"
        if kind in SLICES and standard and ("interval" in given) == ("position" in given):
            raise ValueError(f"{name!r}: slices move (interval: 100) or stay (position: random); set one of the two.")
        if not standard and "position" in given:
            raise ValueError(f"{name!r}: directions do not have a position; remove position.")
        if "order" in given and "position" in given:
            raise ValueError(f"{name!r}: slices that stay do not have an order; remove order.")
        return cls(kind, **given)


@dataclass(frozen=True)
class Studies:
    """Contents of ``studies.yaml``.

    Attributes:
        methods: All methods, by name.
        studies: Names of the methods of each study.
        cost_studies: Studies whose methods differ in the cost of a step.
        first_rates: Learning rate at which the search begins, by kind.
    """

    methods: dict[str, MethodConfig]
    studies: dict[str, list[str]]
    cost_studies: list[str]
    first_rates: dict[str, float]

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "Studies":
        """Validate the content of a file.

        Raises:
            ValueError: A method is invalid, or a study or kind is missing.
        """
        methods = {name: MethodConfig.read(name, settings) for name, settings in content["methods"].items()}
        for study, names in content["studies"].items():
            if missing := [name for name in names if name not in methods]:
                raise ValueError(f"Study {study!r} has the method {missing[0]!r}; add it under methods.")
        if missing := sorted({method.kind for method in methods.values()} - {"probe", *content["first_rates"]}):
            raise ValueError(f"first_rates lacks a learning rate for {missing[0]!r}; add one.")
        return cls(methods, content["studies"], content["cost_studies"], content["first_rates"])

    @property
    def differ_in_cost(self) -> list[str]:
        """Methods whose steps are timed; a probe takes no steps."""
        names = [name for study in self.cost_studies for name in self.studies[study]]
        return [name for name in names if self.methods[name].kind != "probe"]


@cache
def studies() -> Studies:
    """The studies of ``studies.yaml``."""
    return Studies.read(yaml.safe_load(Path(__file__).with_name("studies.yaml").read_text()))
