"""The GLUE tasks, through the Hugging Face hub (optional extra ``glue``).

The test labels of GLUE are not public. So its validation set is the test set here, and a tenth of the training set,
chosen by a hash of the text, is held out for validation.

Source:  Wang et al., GLUE, arXiv:1804.07461.
"""

from dataclasses import dataclass
from typing import Any

from slicefine_pl.data.tables.table import Table, split_by_text
from slicefine_pl.data.tables.values import parse_labels
from slicefine_pl.optional import optional_imports

HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueTask:
    """How the hub stores a task.

    Attributes:
        columns: Names of the text columns.
        names: Names of the classes, in order of their index; empty for regression.
        test: Split of the hub that serves as the test set.
    """

    columns: tuple[str, ...]
    names: tuple[str, ...]
    test: str = "validation"


TASKS = {
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable")),
    "sst2": GlueTask(("sentence",), ("negative", "positive")),
    "mrpc": GlueTask(("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "qqp": GlueTask(("question1", "question2"), ("not_duplicate", "duplicate")),
    "stsb": GlueTask(("sentence1", "sentence2"), ()),
    "mnli": GlueTask(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), test="validation_matched"),
    "qnli": GlueTask(("question", "sentence"), ("entailment", "not_entailment")),
    "rte": GlueTask(("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "wnli": GlueTask(("sentence1", "sentence2"), ("not_entailment", "entailment")),
}


def load_glue(name: str) -> dict[str, Table]:
    """Download one task, or read it from the cache of the hub.

    Args:
        name: Name of the task, e.g. ``"sst2"``.

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


def _table(name: str, task: GlueTask, rows: Any) -> Table:
    columns = [list(rows[column]) for column in task.columns]
    numbers = range(1, len(columns[0]) + 1)
    labels = parse_labels(list(rows["label"]), [f"'glue/{name}', row {number}," for number in numbers], "label")
    return Table(f"glue/{name}", columns, labels, numbers)
