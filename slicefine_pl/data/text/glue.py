"""The GLUE tasks, through the Hugging Face hub (optional extra ``glue``).

GLUE keeps its test labels to itself.  So its validation set is the test set here, and a tenth of the training set,
chosen by a hash of the text, is held out for validation.

Source:  Wang et al., GLUE, arXiv:1804.07461.
"""

from dataclasses import dataclass
from typing import Any

from slicefine_pl.data.cells import labels_of
from slicefine_pl.data.tables import Table, split_by_text
from slicefine_pl.optional import optional_imports

HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class Task:
    """Columns of texts and names of classes (none for regression)."""

    columns: tuple[str, ...]
    names: tuple[str, ...]
    test: str = "validation"


TASKS = {
    "cola": Task(("sentence",), ("unacceptable", "acceptable")),
    "sst2": Task(("sentence",), ("negative", "positive")),
    "mrpc": Task(("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "qqp": Task(("question1", "question2"), ("not_duplicate", "duplicate")),
    "stsb": Task(("sentence1", "sentence2"), ()),
    "mnli": Task(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), test="validation_matched"),
    "qnli": Task(("question", "sentence"), ("entailment", "not_entailment")),
    "rte": Task(("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "wnli": Task(("sentence1", "sentence2"), ("not_entailment", "entailment")),
}


def load_glue(name: str) -> dict[str, Table]:
    """Download one task, or read it from the hub's own cache.

    Args:
        name: Of the task, e.g. ``"sst2"``.

    Raises:
        ModuleNotFoundError: ``datasets`` is not installed.
        OSError: The hub cannot be reached.
    """
    with optional_imports():
        import datasets
    task = TASKS[name]
    try:
        sets = datasets.load_dataset(HUB, name)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise OSError(
            f"GLUE task {name!r} could not be loaded from the hub ({reason}); check the network, or give local files."
        ) from error
    splits = split_by_text(_table(name, task, sets["train"]), {"train": 90, "val": 10})
    return {**splits, "test": _table(name, task, sets[task.test])}


def _table(name: str, task: Task, rows: Any) -> Table:
    columns = [list(rows[column]) for column in task.columns]
    numbers = range(1, len(columns[0]) + 1)
    labels = labels_of(list(rows["label"]), [f"'glue/{name}', row {number}," for number in numbers], "label")
    return Table(f"glue/{name}", columns, labels, numbers)
