"""Classify images with a pretrained backbone from timm, torchvision or transformers, or a module of your own.

Knows networks and how to export them; knows neither where images come from nor which weights are trained.

Shapes:  B batch · H, W height and width in pixels · C classes
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from slicefine_pl.inputs import ImageInput
from slicefine_pl.modules.classifier import Batch, resolve_num_classes, set_class_names
from slicefine_pl.modules.image.backbones import load_backbone
from slicefine_pl.modules.image.exports import (
    image_processor,
    plain_lines,
    timm_lines,
    timm_settings,
    torchvision_view,
    transformers_lines,
    write_reader,
)
from slicefine_pl.modules.vision_classifier import VisionClassifier
from slicefine_pl.pretrained import locate


class ImageClassifier(VisionClassifier):
    """Fine-tune an image network with a new head.

    **Head.** A backbone without a fitting head gets a new one, random until trained; predicting with it is refused.
    **Logs.** Accuracy, top-5 accuracy where there are more than five classes, and the mean of the classes' accuracies.
    **Checkpoint.** Holds the plain model's weights below ``model.``; ``load_from_checkpoint`` needs the backbone's
    files again, for the architecture.
    **Limits.** One label per image. Images come as batches of ``images``, normalised as the backbone wants them, and
    ``labels``.

    Args:
        backbone: ``"timm/<name>"`` or ``"torchvision/<name>"``, which take the library's own weights, or with
            ``@<file>`` (also ``@package:<package>/<file>``) those of a file, or with ``@random`` none; a hub name or
            folder of transformers; an exported folder; or a module that maps images to logits (its last linear layer
            is the head).
        num_classes: Classes, at least 2; ``None`` takes it from ``label_names`` or the backbone.
        label_names: Name of each class, in order of the label.
        label_smoothing: Share of the target that all classes share, in [0, 1); for training only.
        lr: Peak learning rate.
        head_lr: Peak learning rate of the head; ``None`` means ``lr``.
        weight_decay: Decoupled weight decay of AdamW.
        warmup: Share of all steps over which the rate rises.
        decay: Shape of the fall after the warm-up.

    Example:
        >>> module = ImageClassifier("timm/resnet18@random", num_classes=3)  # doctest: +SKIP
    """

    input: ImageInput | None
    input_kind = ImageInput

    def __init__(
        self,
        backbone: str | nn.Module = "timm/tf_efficientnet_lite0",
        num_classes: int | None = None,
        label_names: Sequence[str] | None = None,
        label_smoothing: float = 0.0,
        lr: float = 1e-4,
        head_lr: float | None = None,
        weight_decay: float = 0.01,
        warmup: float = 0.06,
        decay: Literal["linear", "cosine", "constant"] = "cosine",
    ) -> None:
        names = None if label_names is None else list(label_names)
        classes = resolve_num_classes(num_classes, names, least=2)
        loaded = load_backbone(backbone, classes)
        super().__init__(
            backbone=backbone,
            model=loaded.model,
            head=loaded.head,
            new_head=loaded.new_head,
            label_names=names if names is not None else loaded.label_names,
            num_classes=classes if classes is not None else _outputs(loaded.head),
            label_smoothing=label_smoothing,
            lr=lr,
            head_lr=head_lr,
            weight_decay=weight_decay,
            warmup=warmup,
            decay=decay,
            seen=loaded.seen,
        )
        self.save_hyperparameters(ignore=["backbone"] if isinstance(backbone, nn.Module) else [])
        self.library = loaded.library
        self._architecture = loaded.architecture
        if loaded.library == "transformers":
            set_class_names(self.model.config, self.label_names)

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits, shape ``(B, C)``, of ``batch["images"]``, shape ``(B, 3, H, W)``."""
        output = self.model(batch["images"])
        logits = getattr(output, "logits", output)
        assert isinstance(logits, Tensor)
        return logits

    def write_files(self, folder: Path) -> None:
        """Write weights (safetensors) and ``config.json`` as the backbone's own library does, and ``read_image.py``."""
        writers = {"timm": self._write_timm, "transformers": self._write_transformers}
        writers.get(self.library, self._write_plain)(folder)
        write_reader(folder)

    def example(self, path: str | Path) -> str:
        """Return lines of Python that classify a photo with the folder ``export`` wrote, without this package."""
        folder, named = str(path), self.label_names is not None
        if self.library == "timm":
            return timm_lines(folder, named)
        if self.library == "transformers":
            return transformers_lines(folder)
        if self.library == "torchvision":
            name = self._architecture
            build = f'model = torchvision.models.get_model("{name}", num_classes={self.num_classes})'
            view = f'view = torchvision.models.get_model_weights("{name}").DEFAULT.transforms()'
        else:
            build = f"# before: model = your {type(self.model).__name__} with {self.num_classes} outputs"
            view = "# before: view = your function from an image to what the network was trained on, (3, H, W)"
        return plain_lines(folder, named, build, view if self.input is None else torchvision_view(self.input))

    def _write_timm(self, folder: Path) -> None:
        from timm.models import save_for_hf

        settings = {"label_names": self.label_names, **self.input_record}
        if self.input is not None:
            settings["pretrained_cfg"] = timm_settings(self.input)
        save_for_hf(self.model, str(folder), settings, safe_serialization=True)

    def _write_transformers(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, PreTrainedModel

        assert isinstance(self.model, PreTrainedModel)
        self.model.config.update(self.input_record)
        self.model.save_pretrained(folder)
        if self.input is None:
            processor: Any = AutoImageProcessor.from_pretrained(locate(self.backbone))  # type: ignore[no-untyped-call]
        else:
            processor = image_processor(self.input)
        processor.save_pretrained(folder)

    def _write_plain(self, folder: Path) -> None:
        settings = {
            "library": self.library,
            "architecture": self._architecture or type(self.model).__name__,
            "num_classes": self.num_classes,
        }
        self.write_plain(folder, settings)


def _outputs(head: Sequence[nn.Module]) -> int:
    linears = [layer for part in head for layer in part.modules() if isinstance(layer, nn.Linear)]
    if not linears:
        raise ValueError("the backbone's head is no linear layer; give num_classes or label_names.")
    return linears[-1].out_features
