"""From the labels of a file to class indices or values.

Answers: which classes are there, in which order, and is every label one of them?
"""

from abc import abstractmethod
from collections.abc import Sequence

from slicefine_pl.data.tables import Table


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


def class_names(train: Table) -> list[str]:
    """Names of the classes in a training table: numbers by size, names by alphabet.

    Raises:
        ValueError: The labels are values rather than classes, or all the same.
    """
    labels = sorted(set(train.labels))
    if any(isinstance(label, float) and not label.is_integer() for label in labels):
        raise ValueError(
            f"{train.source!r} has labels such as {_fraction(labels)}, which are values and no classes; "
            "set task='regression' or give another label column."
        )
    if len(labels) < 2:
        raise ValueError(f"{train.source!r} has only the class {labels[0]!r} for training; give at least two classes.")
    return [_name(label) for label in labels]


def class_indices(table: Table, names: Sequence[str], *, positions: bool = False) -> list[int]:
    """Index of each label in ``names``.

    Args:
        table: Its labels are names, or positions.
        names: Of the classes, in order.
        positions: Whether integer labels count as positions where no name is a number, as with names that a user gives
            to the classes 0, 1, ...  With names that came from the training data this would mix up the classes.

    Raises:
        ValueError: A label is none of the classes.
    """
    if positions and all(isinstance(label, int) for label in table.labels) and not any(map(_is_number, names)):
        return [_in_range(label, row, table, names) for row, label in enumerate(table.labels)]
    known = {name: index for index, name in enumerate(names)}
    labels = [_name(label) for label in table.labels]
    if unknown := [row for row, label in enumerate(labels) if label not in known]:
        raise ValueError(
            f"{table.source!r}, {table.unit} {table.rows[unknown[0]]}, has the label {labels[unknown[0]]!r}, which is "
            f"none of the {len(names)} classes {_some(names)}; correct it, or add it to label_names and to the "
            "training data."
        )
    return [known[label] for label in labels]


def values(table: Table) -> list[float]:
    """The labels as numbers, for regression.

    Raises:
        ValueError: They are names.
    """
    if any(isinstance(label, str) for label in table.labels):
        raise ValueError(
            f"{table.source!r} has labels such as {table.labels[0]!r}, which are no numbers; "
            "set task='classification' or give another label column."
        )
    return [float(label) for label in table.labels]


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


def _in_range(label: int, row: int, table: Table, names: Sequence[str]) -> int:
    if not 0 <= label < len(names):
        raise ValueError(
            f"{table.source!r}, {table.unit} {table.rows[row]}, has the label {label}, outside 0 to {len(names) - 1} "
            f"for the classes {_some(names)}; correct it, or add a name to label_names."
        )
    return label


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _name(label: int | float | str) -> str:
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _fraction(labels: Sequence[float]) -> float:
    return next(label for label in labels if not float(label).is_integer())


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:6])) + (", ..." if len(names) > 6 else "")
