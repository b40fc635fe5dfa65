"""Classify images with a pretrained backbone from timm, torchvision or transformers, or a module of your own.

Knows networks and how to export them; knows neither where images come from nor which weights are trained.

Shapes:  B batch · H, W height and width in pixels · C classes
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from slicefine_pl.modules.classifier import Batch, agreed_classes, name_outputs
from slicefine_pl.modules.image.backbones import load_backbone
from slicefine_pl.modules.visual import VisualClassifier
from slicefine_pl.pretrained import locate


class ImageClassifier(VisualClassifier):
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
        classes = agreed_classes(num_classes, names, least=2)
        loaded = load_backbone(backbone, classes)
        super().__init__(
            backbone=backbone,
            model=loaded.model,
            head=loaded.head,
            fresh=loaded.fresh,
            label_names=names if names is not None else loaded.label_names,
            num_classes=classes if classes is not None else _outputs(loaded.head),
            label_smoothing=label_smoothing,
            lr=lr,
            head_lr=head_lr,
            weight_decay=weight_decay,
            warmup=warmup,
            decay=decay,
        )
        self.save_hyperparameters(ignore=["backbone"] if isinstance(backbone, nn.Module) else [])
        self.library = loaded.library
        self._architecture = loaded.architecture
        self._size: int | None = None  # of the images it was trained on
        if loaded.library == "transformers":
            name_outputs(self.model.config, self.label_names)

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits, shape ``(B, C)``, of ``batch["images"]``, shape ``(B, 3, H, W)``."""
        output = self.model(batch["images"])
        logits = getattr(output, "logits", output)
        assert isinstance(logits, Tensor)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a training batch."""
        self._size = batch["images"].shape[-1]
        return super().training_step(batch, batch_idx)

    def write_files(self, folder: Path) -> None:
        """Write weights (safetensors) and ``config.json``, as the backbone's own library does."""
        writers = {"timm": self._write_timm, "transformers": self._write_transformers}
        writers.get(self.library, self._write_plain)(folder)

    def example(self, path: str | Path) -> str:
        """Return three lines of Python that load the folder ``export`` wrote, with the backbone's library alone."""
        if self.library == "timm":
            return (
                "import timm\n"
                f'model = timm.create_model("local-dir:{path}", pretrained=True).eval()\n'
                "transform = timm.data.create_transform(**timm.data.resolve_data_config(model.pretrained_cfg))"
            )
        if self.library == "transformers":
            return (
                "from transformers import pipeline\n"
                f'classify = pipeline("image-classification", model="{path}")\n'
                'print(classify("photo.jpg"))'
            )
        build = f'torchvision.models.get_model("{self._architecture}", num_classes={self.num_classes})'
        return (
            f"import safetensors.torch{', torchvision' if self.library == 'torchvision' else ''}\n"
            f"model = {build if self.library == 'torchvision' else f'...  # your {type(self.model).__name__}'}\n"
            f'safetensors.torch.load_model(model, "{path}/model.safetensors")'
        )

    def _write_timm(self, folder: Path) -> None:
        from timm.models import save_for_hf

        size = {} if self._size is None else {"pretrained_cfg": {"input_size": (3, self._size, self._size)}}
        save_for_hf(self.model, str(folder), {"label_names": self.label_names, **size}, safe_serialization=True)

    def _write_transformers(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, PreTrainedModel

        assert isinstance(self.model, PreTrainedModel)
        self.model.save_pretrained(folder)
        processor: Any = AutoImageProcessor.from_pretrained(locate(self.backbone))  # type: ignore[no-untyped-call]
        processor.save_pretrained(folder)

    def _write_plain(self, folder: Path) -> None:
        settings = {
            "library": self.library,
            "architecture": self._architecture or type(self.model).__name__,
            "num_classes": self.num_classes,
            "input_size": self._size,
        }
        self.write_plain(folder, settings)


def _outputs(head: Sequence[nn.Module]) -> int:
    linears = [layer for part in head for layer in part.modules() if isinstance(layer, nn.Linear)]
    if not linears:
        raise ValueError("the backbone's head is no linear layer; give num_classes or label_names.")
    return linears[-1].out_features
