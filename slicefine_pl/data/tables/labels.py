"""Turn the labels of a table into class indices, or into numbers for regression."""

import re
import unicodedata
from abc import abstractmethod
from collections.abc import Iterable, Sequence

from slicefine_pl.data.tables.table import Table
from slicefine_pl.data.tables.values import NUMBER, parse_number

INTEGER = re.compile(r"0|-?[1-9]\d{0,17}", re.ASCII)  # as programs write them; "01" and "+1" are class names


class ClassificationData:
    """Base of data modules with classes. The recipes pass the names of the classes to the model."""

    @property
    @abstractmethod
    def label_names(self) -> list[str] | None:
        """Names of the classes, in order of their index; ``None`` if only predictions are served."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes; ``None`` if only predictions are served."""
        names = self.label_names
        return None if names is None else len(names)


def validate_names(names: Sequence[str] | None) -> list[str] | None:
    """Check and return the class names given by the user.

    Raises:
        ValueError: A name is given twice, or is not a text. YAML turns ``no`` without quotes into a boolean.
    """
    if names is None:
        return None
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"label_names={list(names)} has {wrong[0]!r}, which is not a text; put quotes around it.")
    if twice := [name for name in names if list(names).count(name) > 1]:
        raise ValueError(f"label_names={list(names)} has {twice[0]!r} twice; give each class a name of its own.")
    return list(names)


def sorted_names(names: Iterable[str]) -> list[str]:
    """Return each name once: in numerical order if all are whole numbers, else in alphabetical order.

    Raises:
        ValueError: Two names look the same, such as ``"a"`` and ``" a"``.
    """
    unique = set(names)
    looks: dict[str, str] = {}
    for name in sorted(unique):
        if looks.setdefault(_appearance(name), name) != name:
            raise ValueError(
                f"the classes {looks[_appearance(name)]!r} and {name!r} look the same; give one another name."
            )
    return sorted(unique, key=int) if all(map(INTEGER.fullmatch, unique)) else sorted(unique)


def class_names(train: Table) -> list[str]:
    """Return the names of the classes in a training table, in order.

    Raises:
        ValueError: There is only one class, or two names look the same, such as ``"a"`` and ``" a"``.
    """
    _check_distinct(train)
    names = sorted_names(train.labels)
    if len(names) < 2:
        raise ValueError(f"{train.source!r} has only the class {names[0]!r} for training; give at least two classes.")
    return names


def class_indices(table: Table, names: Sequence[str], *, are_indices: bool = False) -> list[int]:
    """Return the index of each label in ``names``.

    Args:
        table: Table whose labels are class names or class indices.
        names: Names of the classes, in order.
        are_indices: Whether the labels are class indices, see :func:`labels_are_indices`.

    Raises:
        ValueError: A label is not one of the classes.
    """
    if are_indices:
        return [_in_range(row, table, names) for row in range(len(table))]
    known = {name: index for index, name in enumerate(names)}
    if unknown := [row for row, label in enumerate(table.labels) if label not in known]:
        raise ValueError(
            f"{table.place(unknown[0])} has the label {table.labels[unknown[0]]!r}, which is not one of the "
            f"{len(names)} classes {_some(names)}; correct it, or add it to label_names and to the "
            f"training data{_remedy(names)}."
        )
    return [known[label] for label in table.labels]


def labels_are_indices(train: Table, names: Sequence[str]) -> bool:
    """Whether the labels of a training table are indices, from 0, of the class names given by the user.

    They are if every label is a whole number and no class name is a number.
    """
    return all(map(INTEGER.fullmatch, train.labels)) and not any(map(NUMBER.fullmatch, names))


def regression_targets(table: Table) -> list[float]:
    """Return the labels as numbers, for regression.

    Raises:
        ValueError: A label is not a decimal number.
    """
    return [parse_number(label, table.place(row)) for row, label in enumerate(table.labels)]


def check_classes_trained(indices: Sequence[int], names: Sequence[str], source: str) -> None:
    """Check that every class has training examples.

    Raises:
        ValueError: A class has none.
    """
    if absent := sorted(set(range(len(names))) - set(indices)):
        raise ValueError(
            f"class {names[absent[0]]!r} has no training example in {source!r}; add some, or leave it out of "
            "label_names and of the validation and test data."
        )


def _check_distinct(table: Table) -> None:
    """Raise ValueError if two labels look the same: a reader could not tell the classes apart."""
    first: dict[str, int] = {}
    for row, label in enumerate(table.labels):
        known = first.setdefault(_appearance(label), row)
        if table.labels[known] != label:
            raise ValueError(
                f"{table.place(row)} has the label {label!r}, and {table.unit} {table.rows[known]} has "
                f"{table.labels[known]!r}; they look the same. Write both alike, or choose other names."
            )


def _appearance(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


def _in_range(row: int, table: Table, names: Sequence[str]) -> int:
    label = table.labels[row]
    if not INTEGER.fullmatch(label) or not 0 <= int(label) < len(names):
        raise ValueError(
            f"{table.place(row)} has the label {label!r}, and the classes {_some(names)} are counted from 0 to "
            f"{len(names) - 1}; correct it, or add a name to label_names."
        )
    return int(label)


def _remedy(names: Sequence[str]) -> str:
    fractions = all(map(NUMBER.fullmatch, names)) and any("." in name for name in names)
    return "; if the labels are values rather than classes, set task='regression'" if fractions else ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:6])) + (", ..." if len(names) > 6 else "")
