"""The runs of a grid, read from a YAML file.

Units:  sparsity in [0, 1) · learning rate · epochs
"""

from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import NamedTuple

import yaml

from slicefine_pl.cli.recipe.yaml_limits import check_yaml
from slicefine_pl.scaling.costs import checked_positive, checked_sparsity
from slicefine_pl.scaling.runs import NEEDED

FORMS = {  # container, type of its numbers, and example of each entry of the file
    "backbones": (dict, float, "{name: 1.0e-3, other name: 2.0e-3} with learning rates"),
    "sparsities": (list, (int, float), "[0.0, 0.5, 0.75]"),
    "epochs": (list, int, "[3, 6, 12]"),
    "seeds": (list, int, "[0]"),
    "folder": (str, str, "the name of a folder"),
}
MINIMUM = {  # different values that a law needs
    "backbones": NEEDED["nonzero_params"][0],
    "sparsities": NEEDED["sparsity"][0],
    "epochs": NEEDED["data"][0],
    "seeds": 1,
    "folder": 1,
}


class GridPoint(NamedTuple):
    """One run of a grid.

    Attributes:
        backbone: Name of the backbone.
        lr: Learning rate.
        sparsity: Share of zeros at the end, in [0, 1).
        epochs: Length of training.
        seed: Seed of weights and data order.
    """

    backbone: str
    lr: float
    sparsity: float
    epochs: int
    seed: int

    def __str__(self) -> str:
        length = f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}"
        return f"{Path(self.backbone).name}, sparsity {self.sparsity:g}, {length}, seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """Every backbone at every sparsity, for every number of epochs and every seed.

    Attributes:
        backbones: Learning rate by name of the backbone, as ``--model.backbone`` takes it.
        sparsities: Shares of zeros, in [0, 1); 0 trains dense.
        epochs: Lengths of training. Each is a separate run, whose learning rate decays to zero.
        seeds: Seeds of weights and data order.
        folder: Folder of the results.
    """

    backbones: dict[str, float]
    sparsities: list[float]
    epochs: list[int]
    seeds: list[int]
    folder: str

    @property
    def points(self) -> list[GridPoint]:
        """All runs, short ones first, so that the remaining time can be estimated early."""
        runs = product(sorted(self.epochs), self.seeds, self.backbones.items(), self.sparsities)
        points = (GridPoint(name, float(lr), float(s), epochs, seed) for epochs, seed, (name, lr), s in runs)
        return list(dict.fromkeys(points))


def read_grid(path: Path) -> Grid:
    """Read a grid.

    Raises:
        ValueError: The file cannot be read, or no law can be fitted to its runs.
    """
    try:
        text = path.read_text("utf-8")
        check_yaml(text)
        entries = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"grid {str(path)!r} cannot be read ({' '.join(str(error).split())}); give YAML.") from error
    names = [field.name for field in fields(Grid)]
    if not isinstance(entries, dict) or set(entries) != set(names):
        found = ", ".join(map(str, entries)) if isinstance(entries, dict) else "nothing"
        raise ValueError(f"grid {str(path)!r} has {found or 'nothing'}; give exactly {', '.join(names)}.")
    for name, (container, entry, form) in FORMS.items():
        values = entries[name]
        numbers = values.values() if isinstance(values, dict) else values
        if not isinstance(values, container) or not all(isinstance(number, entry) for number in numbers):
            raise ValueError(f"grid {str(path)!r}: {name}={values!r} has another form; write {form}.")
        if len(set(values)) < MINIMUM[name]:
            raise ValueError(
                f"grid {str(path)!r}: {name}={values} are too few for a law; give {MINIMUM[name]} or more."
            )
    checked_sparsity(entries["sparsities"])
    checked_positive("epochs", entries["epochs"], "passes over the data")
    checked_positive("learning rate", [*entries["backbones"].values()], "at most about 1")
    return Grid(**entries)
