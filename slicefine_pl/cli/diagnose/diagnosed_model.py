"""The network that ``slicefine diagnose`` measures, and the examples that it is measured on.

A new head is random, and would make the gradients of the backbone random too. So a linear head is first fitted to the
frozen features, which is roughly what a fine-tuning run has after its first steps.

Shapes:  n examples · B batch · C classes (1 for regression)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slicefine_pl.analysis.reinitialize import reinitialize
from slicefine_pl.analysis.targets import target_matrices
from slicefine_pl.cli.diagnose.config import BATCH, DiagnoseConfig, model_kind
from slicefine_pl.cli.diagnose.head import HEAD_EXAMPLES, HELD_OUT, Batch, count, fit_head, recalibrate_norms, score
from slicefine_pl.inputs import ImageInput, stored_input

if TYPE_CHECKING:  # each needs the libraries of its extra
    from slicefine_pl.data import ImageDataModule, TextDataModule
    from slicefine_pl.modules import ImageClassifier, TextClassifier


@dataclass
class DiagnosedModel:
    """A network with a fitted head, and the examples to measure it on.

    Attributes:
        module: ``TextClassifier`` or ``ImageClassifier`` on the CPU, in eval mode.
        train: Batches of the training examples to measure on.
        head_examples: Batches that a new head is fitted to; they begin with ``train``.
        held_out: Batches of validation examples.
        available: Number of examples in the data, for ``"training"`` and ``"validation"``.
        source: Name of the data.
        head: Where the head comes from, in words.
        scores: Accuracy, or Pearson correlation, of the head on ``"train"`` and ``"held out"``.
    """

    module: "TextClassifier | ImageClassifier"
    train: list[Batch]
    head_examples: list[Batch]
    held_out: list[Batch]
    available: dict[str, int]
    source: str
    head: str = ""
    scores: dict[str, float] | None = None

    def losses(self, batch: Batch) -> Tensor:
        """Cross entropy, or squared error, of each example, shape ``(B,)``."""
        outputs: Tensor = self.module(batch).float()
        labels = batch["labels"]
        if outputs.shape[1] == 1:
            return (outputs.squeeze(1) - labels).square()
        return F.cross_entropy(outputs, labels, reduction="none")

    @property
    def loss_name(self) -> str:
        """Name of the loss."""
        return "squared error" if self.module.num_classes == 1 else "cross entropy"

    def prepare_head(self) -> None:
        """Fit the head if it is new, and score it."""
        self.head = "came with the model"
        if self.module.untrained_head:
            fit_head(self.module, self.head_examples)
            self.module.untrained_head = False
            self.head = f"was fitted here to {count(self.head_examples):,} examples"
        self.scores = {"train": score(self.module, self.train), "held out": score(self.module, self.held_out)}


def load(config: DiagnoseConfig) -> DiagnosedModel:
    """Load model and data, and fit the head if it is new.

    Raises:
        ValueError: The model or its layers cannot be used, there are too few examples, or all labels are the same.
        OSError: The data cannot be read.
        ImportError: A package is not installed.
    """
    kind = model_kind(config.model, config.kind)
    data, module = _load_text(config) if kind == "text" else _load_image(config)
    module.warn_random_weights()
    target_matrices(module, config.targets, config.rank)  # raises before a head is fitted
    loaders: dict[str, Any] = {"training": data.train_dataloader(), "validation": data.val_dataloader()}
    head_examples = _first(loaders["training"], max(config.examples, HEAD_EXAMPLES))
    loaded = DiagnosedModel(
        module,
        train=_first(head_examples, config.examples),
        head_examples=head_examples,
        held_out=_spread(loaders["validation"], HELD_OUT),
        available={name: len(loader.plan.lengths) for name, loader in loaders.items()},
        source=config.data or ("reviews" if kind == "text" else "digits"),
    )
    _check_examples("training", loaded.train, 2 * BATCH)
    _check_examples("validation", loaded.held_out, BATCH)
    loaded.prepare_head()
    return loaded


def without_pretraining(model: DiagnosedModel, seed: int) -> DiagnosedModel:
    """Return the control: the same network with random weights, and a head fitted to its features."""
    module = reinitialize(model.module, seed)
    recalibrate_norms(module, model.train)
    module.untrained_head = True
    control = DiagnosedModel(module, model.train, model.head_examples, model.held_out, model.available, model.source)
    control.prepare_head()
    return control


def _load_text(config: DiagnoseConfig) -> "tuple[TextDataModule, TextClassifier]":
    from slicefine_pl.data import TextDataModule
    from slicefine_pl.modules import TextClassifier

    data = TextDataModule(
        source=config.data or "reviews",
        text_columns=config.text_columns,
        label_column=config.label_column,
        task=config.task,
        tokenizer=config.model,
        batch_size=BATCH,
        seed=config.seed,
    )
    data.prepare_data()
    data.setup("fit")
    names = data.label_names
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # a new head may have layers below the linear one that is fitted
        module = TextClassifier(config.model, 1 if names is None else None, names, pooling=config.pooling)
    return data, module.eval()


def _load_image(config: DiagnoseConfig) -> "tuple[ImageDataModule, ImageClassifier]":
    from slicefine_pl.data import ImageDataModule
    from slicefine_pl.modules import ImageClassifier

    source = config.data or "digits"
    published = source == "digits" or config.root is not None or source.startswith("vtab/")
    data = ImageDataModule(
        root=config.root if published else source,
        source=source if published else None,
        processor=config.model,
        size=config.size,
        min_area=1.0,
        flip=False,
        batch_size=BATCH,
        seed=config.seed,
    )
    trained = stored_input(config.model, ImageInput)
    if trained is not None and trained.size != data.input.size:
        print(
            f"note: the model was trained on images of {trained.size} pixels; --size {data.input.size} replaces that."
        )
    data.prepare_data()
    data.setup("fit")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # as above
        module = ImageClassifier(config.model, label_names=data.label_names)
    return data, module.eval()


def _check_examples(name: str, batches: list[Batch], least: int) -> None:
    if (found := count(batches)) < least:
        raise ValueError(
            f"{found} {name} examples are too few to measure anything; give --data with more, and --examples of at "
            f"least {least}."
        )
    labels = torch.cat([batch["labels"] for batch in batches])
    if (labels == labels[0]).all():
        raise ValueError(
            f"All {found} {name} examples have the label {labels[0]:g}, so that there is nothing to learn; give"
            " other --data, or another --label-column."
        )


def _first(batches: Iterable[Mapping[str, Any]], examples: int) -> list[Batch]:
    """The first batches, until they contain ``examples``; a batch may be smaller than ``BATCH``."""
    taken: list[Batch] = []
    for batch in batches:
        if count(taken) >= examples:
            break
        taken.append(_tensors(batch))
    return taken


def _spread(loader: Any, examples: int) -> list[Batch]:
    """Batches spread evenly over a loader, which may order its batches by length."""
    wanted = -(-examples // BATCH)
    places = {round(place) for place in torch.linspace(0, len(loader) - 1, min(wanted, len(loader))).tolist()}
    return [_tensors(batch) for index, batch in enumerate(loader) if index in places]


def _tensors(batch: Mapping[str, Any]) -> Batch:
    return {name: value for name, value in batch.items() if isinstance(value, Tensor)}
