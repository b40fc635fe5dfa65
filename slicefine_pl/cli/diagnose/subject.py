"""What ``slicefine diagnose`` looks at: a backbone with a head that fits the user's data, and examples of these.

Answers one question: of which network, and of which loss, does the report speak?  A new head is random, and would make
the gradient of the backbone random too; so a linear head is fitted to the frozen features first, which is what a
fine-tuning run has after its first steps.

Shapes:  n examples · B batch · T tokens · D inputs of the head · C classes (1 for regression)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slicefine_pl.analysis import regression
from slicefine_pl.analysis.layer_inputs import record_inputs
from slicefine_pl.analysis.preserve_state import preserve_state
from slicefine_pl.analysis.reinitialize import reinitialize
from slicefine_pl.analysis.targets import target_matrices
from slicefine_pl.data import ImageDataModule, TextDataModule
from slicefine_pl.modules import ImageClassifier, TextClassifier
from slicefine_pl.network.heads import last_linear
from slicefine_pl.network.names import NamePatterns
from slicefine_pl.pretrained import parse_backbone, read_config

Batch = Mapping[str, Tensor]
Kind = Literal["text", "image"]

PENALTY = 1e-2  # of the L2 term of the head, on standardised features: in the middle of what LinearProbe tries
HEAD_EXAMPLES = 2048  # training examples that it is fitted to, or all; in whole batches
HELD_OUT = 256  # validation examples to look at
BATCH = 32


@dataclass(frozen=True)
class Wish:
    """What the user asks to look at; the flags of the command.

    Attributes:
        model: Backbone, as the recipes take it.
        data: Source of a ``TextDataModule``; ``"digits"``, a folder or a published set of an ``ImageDataModule``.
        kind: Text or images; ``None`` tells it from the model, see :func:`kind_of`.
        text_columns: Columns of the texts, in files.
        label_column: Column of the labels, in files.
        task: Classes or numbers (texts only).
        pooling: As in ``TextClassifier``.
        size: Of images, in pixels; ``None`` takes the backbone's own.
        root: Folder of a published set of images.
        examples: Training examples to look at.
        seed: Of every choice.
    """

    model: str
    data: str | None
    kind: Kind | None
    text_columns: tuple[str, ...]
    label_column: str
    task: Literal["classification", "regression"]
    pooling: Literal["default", "mean"]
    size: int | None
    root: str | None
    examples: int
    seed: int


@dataclass
class Subject:
    """A network whose head fits, and examples.

    Attributes:
        module: A ``TextClassifier`` or ``ImageClassifier`` on the CPU.
        train: Batches of training examples to look at.
        head_examples: Batches to fit a head to; the first of them are ``train``.
        held_out: Batches of validation examples.
        given: Examples in the data, for ``"training"`` and ``"validation"``.
        head: Where it comes from, in words.
        scores: Accuracy, or Pearson correlation, of the head on ``"train"`` and ``"held out"``.
    """

    module: TextClassifier | ImageClassifier
    train: list[Batch]
    head_examples: list[Batch]
    held_out: list[Batch]
    given: dict[str, int]
    head: str
    scores: dict[str, float]

    def losses(self, batch: Batch) -> Tensor:
        """Cross entropy, or squared error, of each example, shape ``(B,)``."""
        return _losses(self.module(batch).float(), batch["labels"])

    @property
    def loss_name(self) -> str:
        """In words."""
        return "squared error" if self.module.num_classes == 1 else "cross entropy"


def kind_of(model: str, kind: Kind | None) -> Kind:
    """Text or images: what the user says; else images for timm, torchvision and folders with an image processor.

    Raises:
        ValueError: It is a network for videos.
    """
    if kind is not None:
        return kind
    backbone = parse_backbone(model)
    files = read_config(backbone.name)
    if model.startswith("pytorchvideo/") or "num_frames" in files or files.get("library") in ("pytorchvideo", "i3d"):
        raise ValueError(f"--model {model} takes videos; diagnose looks at networks for texts and images.")
    visual = backbone.library != "transformers" or "image_size" in files or "num_channels" in files
    return "image" if visual else "text"


def load(wish: Wish, targets: NamePatterns | None, rank: int) -> Subject:
    """Load network and data, and fit the head where it is new.

    Args:
        wish: What to load.
        targets: Layers that will be looked at; must be there.
        rank: Lines of the slices; a layer must be that wide.

    Raises:
        ValueError: The network, its library or the layers are not there, there are too few examples, or all labels are
            the same.
        OSError: The data are not there.
    """
    try:
        data = _data(wish, kind_of(wish.model, wish.kind))
        data.prepare_data()
        data.setup("fit")
        module = _module(wish, data)
        module.warn_random_weights()
    except ImportError as error:
        raise ValueError(str(error)) from error
    target_matrices(module, targets, rank)  # refuses, before a head is fitted, what there is no place for
    loaders = {"training": data.train_dataloader(), "validation": data.val_dataloader()}
    given = {name: len(loader.plan.lengths) for name, loader in loaders.items()}
    head_examples = _first(loaders["training"], max(wish.examples, HEAD_EXAMPLES))
    train = _first(head_examples, wish.examples)
    held_out = _spread(loaders["validation"], HELD_OUT)
    for name, batches, least in (("training", train, 2 * BATCH), ("validation", held_out, BATCH)):
        if (there := count(batches)) < least:
            raise ValueError(
                f"{there} {name} examples are too few to measure anything; give --data and --examples for {least}."
            )
        labels = torch.cat([batch["labels"] for batch in batches])
        if (labels == labels[0]).all():
            raise ValueError(
                f"All {there} {name} examples have the label {labels[0]:g}, so that there is nothing to learn; give"
                " other --data, or another --label-column."
            )
    return _with_head(module, train, head_examples, held_out, given)


def without_pretraining(subject: Subject, seed: int) -> Subject:
    """The same network with random weights, and a head fitted to what these make of the same examples."""
    module = reinitialize(subject.module, seed)
    _settle(module, subject.train)
    module.untrained_head = True
    return _with_head(module, subject.train, subject.head_examples, subject.held_out, subject.given)


def _data(wish: Wish, kind: Kind) -> TextDataModule | ImageDataModule:
    if kind == "text":
        return TextDataModule(
            source=wish.data or "reviews",
            text_columns=wish.text_columns,
            label_column=wish.label_column,
            task=wish.task,
            tokenizer=wish.model,
            batch_size=BATCH,
            seed=wish.seed,
        )
    source = wish.data or "digits"
    published = source == "digits" or wish.root is not None or source.startswith("vtab/")
    return ImageDataModule(
        root=wish.root if published else source,
        source=source if published else None,
        processor=wish.model,
        size=wish.size,
        min_area=1.0,
        flip=False,
        batch_size=BATCH,
        seed=wish.seed,
    )


def _module(wish: Wish, data: TextDataModule | ImageDataModule) -> TextClassifier | ImageClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(wish.seed)  # of a new head that is more than the linear layer that is fitted
        if isinstance(data, TextDataModule):
            names = data.label_names
            classes = 1 if names is None else None
            return TextClassifier(wish.model, classes, names, pooling=wish.pooling).eval()
        return ImageClassifier(wish.model, label_names=data.label_names).eval()


def _settle(module: nn.Module, batches: list[Batch]) -> None:
    """Give batch normalizations the statistics of these examples: those of the pretrained weights fit no others."""
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    momenta = [layer.momentum for layer in norms]
    with preserve_state(module):
        for layer in norms:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
            layer.train()
        for batch in batches if norms else []:
            module(batch)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def _first(batches: Iterable[Mapping[str, Any]], examples: int) -> list[Batch]:
    """As many of the first batches as hold so many examples, which may be fewer than ``BATCH`` each."""
    taken: list[Batch] = []
    for batch in batches:
        if count(taken) >= examples:
            break
        taken.append(_tensors(batch))
    return taken


def _spread(loader: Any, examples: int) -> list[Batch]:
    """Batches spread evenly over a loader whose batches may be ordered by length."""
    wanted = -(-examples // BATCH)
    places = {round(place) for place in torch.linspace(0, len(loader) - 1, min(wanted, len(loader))).tolist()}
    return [_tensors(batch) for index, batch in enumerate(loader) if index in places]


def _tensors(batch: Mapping[str, Any]) -> Batch:
    return {name: value for name, value in batch.items() if isinstance(value, Tensor)}


def _with_head(
    module: TextClassifier | ImageClassifier,
    train: list[Batch],
    head_examples: list[Batch],
    held_out: list[Batch],
    given: dict[str, int],
) -> Subject:
    head = "came with the model"
    if module.untrained_head:
        head = f"fitted here to {count(head_examples)} examples"
        _fit_head(module, head_examples)
        module.untrained_head = False
    scores = {"train": _score(module, train), "held out": _score(module, held_out)}
    return Subject(module, train, head_examples, held_out, given, head, scores)


def count(batches: list[Batch]) -> int:
    """Examples in all batches."""
    return sum(len(batch["labels"]) for batch in batches)


def _fit_head(module: TextClassifier | ImageClassifier, batches: list[Batch]) -> None:
    """Give the last linear layer of the head the weights of an L2-penalised regression on its inputs, in float64."""
    layer = last_linear(module)
    if layer is None:
        raise ValueError("This network has no linear head that could be fitted; give one that is trained already.")
    with preserve_state(module), record_inputs(layer) as inputs:
        for batch in batches:
            module(batch)
    features, labels = torch.cat(inputs).double(), torch.cat([batch["labels"] for batch in batches])
    if features.ndim != 2:
        raise ValueError(f"The head of {type(module.model).__name__} takes {features.ndim - 1} dimensions, not one.")
    intercept = layer.bias is not None
    mean, scale = regression.scale_of(features)
    scaled = (features - mean * intercept) / scale  # without a bias nothing can stand for the mean
    if module.num_classes == 1:
        weight, bias = regression.ridge(scaled, labels, PENALTY, intercept)
    else:
        weight, bias = regression.logistic(scaled, labels, module.num_classes, PENALTY, intercept=intercept)
    with torch.no_grad():
        layer.weight.copy_(weight / scale)
        if layer.bias is not None:
            layer.bias.copy_(bias - (weight / scale) @ mean)


def _losses(outputs: Tensor, labels: Tensor) -> Tensor:
    if outputs.shape[1] == 1:
        return (outputs.squeeze(1) - labels).square()
    return F.cross_entropy(outputs, labels, reduction="none")


def _score(module: TextClassifier | ImageClassifier, batches: list[Batch]) -> float:
    """Accuracy, or Pearson correlation, on at most ``HELD_OUT`` examples."""
    some = batches[: -(-HELD_OUT // BATCH)]
    with preserve_state(module):
        outputs = torch.cat([module(batch) for batch in some])
    labels = torch.cat([batch["labels"] for batch in some])
    if module.num_classes == 1:
        return float(torch.corrcoef(torch.stack([outputs.squeeze(1), labels]))[0, 1])
    return float((outputs.argmax(1) == labels).double().mean())
