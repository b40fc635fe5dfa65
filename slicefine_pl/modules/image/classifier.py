"""Classify images with a pretrained backbone of timm, torchvision or transformers, or with a module of your own.

The module contains the network, its loss and its export. It depends neither on the data module nor on callbacks.

Shapes:  B batch · H, W height and width in pixels · C classes
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from slicefine_pl.inputs import ImageInput
from slicefine_pl.modules.classifier import Batch, resolve_num_classes, set_class_names
from slicefine_pl.modules.image.exports import (
    image_processor,
    plain_lines,
    timm_lines,
    timm_settings,
    torchvision_view,
    transformers_lines,
    write_reader,
)
from slicefine_pl.modules.image.load import load_backbone
from slicefine_pl.modules.keyword_settings import Unpack, VisionSettings
from slicefine_pl.modules.vision_classifier import VisionClassifier
from slicefine_pl.pretrained import locate


class ImageClassifier(VisionClassifier):
    """Fine-tune an image network with a new head.

    **Head.** If the head of the backbone does not fit the classes, it is replaced by a new one. Evaluating or
    predicting with an untrained head is an error.
    **Logs.** Accuracy, top-5 accuracy if there are more than five classes, and the mean accuracy of the classes.
    **Checkpoint.** Contains the weights of the plain network under ``model.``. ``load_from_checkpoint`` needs the files
    of the backbone again, for the architecture.
    **Limits.** One label per image. Batches contain ``images``, normalized as the backbone expects, and ``labels``.

    Args:
        backbone: ``"timm/<name>"`` or ``"torchvision/<name>"``, with the library's own weights; with ``@<file>`` or
            ``@package:<package>/<file>`` with those of a file; with ``@random`` with random weights. Or a hub name or
            folder of transformers, an exported folder, or a module that maps images to logits (its last linear layer is
            the head).
        num_classes: Number of classes, at least 2; ``None`` takes it from ``label_names`` or the backbone.
        label_names: Name of each class, in order of its index.
        optimizer: Label smoothing and optimizer settings: ``label_smoothing``, ``lr``, ``head_lr``, ``weight_decay``,
            ``warmup``, ``decay``; see :class:`~slicefine_pl.modules.classifier.Classifier` and
            :class:`~slicefine_pl.modules.fine_tuning.FineTuningModule`.

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
        **optimizer: Unpack[VisionSettings],
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
            trained_input=loaded.trained_input,
            **optimizer,
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
        """Write weights (safetensors) and config as the backbone's own library does, and ``read_image.py``."""
        writers = {"timm": self._write_timm, "transformers": self._write_transformers}
        writers.get(self.library, self._write_plain)(folder)
        write_reader(folder)

    def example(self, path: str | Path) -> str:
        """Return Python code that classifies a photo with an exported folder, without this package."""
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
            view = "# before: view = your function from an image to the network's input, (3, H, W)"
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
        raise ValueError("the backbone's head has no linear layer; give num_classes or label_names.")
    return linears[-1].out_features
