"""The settings of a module, for a slice file."""

import json
from typing import Any

from torch import nn


def settings_of(module: nn.Module) -> dict[str, Any]:
    """What builds the module again: class, hyperparameters and the record of its input, as JSON stores them."""
    settings = {"module": type(module).__name__, "hyper_parameters": dict(getattr(module, "hparams", {}))}
    stored: dict[str, Any] = json.loads(
        json.dumps(settings | getattr(module, "input_record", {}), default=_no_json, skipkeys=True)
    )
    return stored


def _no_json(value: object) -> None:
    """Objects that JSON cannot store become ``null``."""
