"""From the labels of a file to class indices or values.

Answers: which classes are there, in which order, and is every label one of them?
"""

import re
import unicodedata
from abc import abstractmethod
from collections.abc import Iterable, Sequence

from slicefine_pl.data.cells import NUMBER, number_of
from slicefine_pl.data.tables import Table

INTEGER = re.compile(r"0|-?[1-9]\d{0,17}", re.ASCII)  # as a program writes them: "01" and "+1" are names


class NamedClasses:
    """What data with classes tell a model: how they are called, and how many they are."""

    @property
    @abstractmethod
    def label_names(self) -> list[str] | None:
        """Names of the classes in order of their index; ``None`` when only predicting: then the trained model knows."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes; ``None`` when only predicting."""
        names = self.label_names
        return None if names is None else len(names)


def checked_names(names: Sequence[str] | None) -> list[str] | None:
    """The names that a user gives to classes.

    Raises:
        ValueError: A name is not a text, as YAML makes of ``no`` without quotes, or is there twice.
    """
    if names is None:
        return None
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"label_names={list(names)} has {wrong[0]!r}, which is not a text; put quotes around it.")
    if twice := [name for name in names if list(names).count(name) > 1]:
        raise ValueError(f"label_names={list(names)} has {twice[0]!r} twice; give each class a name of its own.")
    return list(names)


def in_order(names: Iterable[str]) -> list[str]:
    """Each name once: by size where all are whole numbers in plain digits, else by alphabet.

    Raises:
        ValueError: Two names look the same, such as ``"a"`` and ``" a"``.
    """
    unique = set(names)
    looks: dict[str, str] = {}
    for name in sorted(unique):
        if looks.setdefault(_look(name), name) != name:
            raise ValueError(f"the classes {looks[_look(name)]!r} and {name!r} look the same; give one another name.")
    return sorted(unique, key=int) if all(map(INTEGER.fullmatch, unique)) else sorted(unique)


def class_names(train: Table) -> list[str]:
    """Names of the classes in a training table, in order.

    Raises:
        ValueError: The labels are all the same, or two of them only look different in white space.
    """
    _check_distinct(train)
    names = in_order(train.labels)
    if len(names) < 2:
        raise ValueError(f"{train.source!r} has only the class {names[0]!r} for training; give at least two classes.")
    return names


def class_indices(table: Table, names: Sequence[str], *, positions: bool = False) -> list[int]:
    """Index of each label in ``names``.

    Args:
        table: Its labels are names, or positions.
        names: Of the classes, in order.
        positions: Whether the labels count the classes from 0, see :func:`are_positions`.

    Raises:
        ValueError: A label is none of the classes.
    """
    if positions:
        return [_in_range(row, table, names) for row in range(len(table))]
    known = {name: index for index, name in enumerate(names)}
    if unknown := [row for row, label in enumerate(table.labels) if label not in known]:
        raise ValueError(
            f"{table.place(unknown[0])} has the label {table.labels[unknown[0]]!r}, which is not one of the "
            f"{len(names)} classes {_some(names)}; correct it, or add it to label_names and to the "
            f"training data{_remedy(names)}."
        )
    return [known[label] for label in table.labels]


def are_positions(train: Table, names: Sequence[str]) -> bool:
    """Whether the labels of a training table count the classes that a user has named, from 0, instead of naming them.

    They do where every label is a whole number and no name is a number.
    """
    return all(map(INTEGER.fullmatch, train.labels)) and not any(map(NUMBER.fullmatch, names))


def values(table: Table) -> list[float]:
    """The labels as numbers, for regression.

    Raises:
        ValueError: A label is not a decimal number.
    """
    return [number_of(label, table.place(row)) for row, label in enumerate(table.labels)]


def check_trained(indices: Sequence[int], names: Sequence[str], source: str) -> None:
    """Refuse classes that the training data do not show.

    Raises:
        ValueError: Some class has no training example.
    """
    if absent := sorted(set(range(len(names))) - set(indices)):
        raise ValueError(
            f"class {names[absent[0]]!r} has no training example in {source!r}; add some, or leave it out of "
            "label_names and of the validation and test data."
        )


def _check_distinct(table: Table) -> None:
    """Refuse two labels that look the same, with their rows: a reader could not tell their classes apart."""
    first: dict[str, int] = {}
    for row, label in enumerate(table.labels):
        known = first.setdefault(_look(label), row)
        if table.labels[known] != label:
            raise ValueError(
                f"{table.place(row)} has the label {label!r}, and {table.unit} {table.rows[known]} has "
                f"{table.labels[known]!r}; they look the same. Write both alike, or choose other names."
            )


def _look(name: str) -> str:
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
