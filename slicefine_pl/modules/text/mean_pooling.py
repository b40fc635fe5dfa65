"""A sentence encoder with masked mean pooling and a linear head, as a model of transformers.

This file imports only torch and transformers. ``save_pretrained`` copies it into the exported folder, so that
``AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)`` works without this package.

Shapes:  B batch · T tokens · D width of the encoder · C classes
"""

from inspect import signature
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPoolingConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """Config of a :class:`MeanPooledClassifier`: that of its encoder, and the dropout before its head."""

    model_type = "mean_pooled_classifier"
    pad_token_id: int | None = None
    encoder: dict[str, Any] | None = None
    classifier_dropout: float = 0.1


class MeanPooledClassifier(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Average the encoder's hidden states over the tokens that are not masked, then apply one linear layer."""

    config_class = MeanPoolingConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: MeanPoolingConfig) -> None:
        super().__init__(config)
        settings = dict(config.encoder or {})
        inner = AutoConfig.for_model(settings.pop("model_type"), **settings)
        self.encoder = AutoModel.from_config(inner, **_no_pooler(inner))  # type: ignore[no-untyped-call]
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(inner.hidden_size, config.num_labels or 2)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_encoder(cls, folder: str, *, num_labels: int) -> "MeanPooledClassifier":
        """Load a pretrained encoder from a hub name or folder, and put a new head on it."""
        inner = AutoConfig.from_pretrained(folder)
        config = MeanPoolingConfig(encoder=inner.to_dict())
        config.num_labels = num_labels
        model = cls(config)
        model.encoder = AutoModel.from_pretrained(folder, **_no_pooler(inner))
        return model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Classify token sequences.

        Args:
            input_ids: Token ids, shape ``(B, T)``.
            attention_mask: 1 for a token, 0 for padding, shape ``(B, T)``; all 1 if omitted.
            token_type_ids: First or second text of a pair, shape ``(B, T)``, for encoders that use it.
            labels: Class indices, shape ``(B,)``; values for a single output. With them the loss is computed too.

        Returns:
            Logits of shape ``(B, C)``, and the loss if labels are given.
        """
        mask = input_ids.new_ones(input_ids.shape) if attention_mask is None else attention_mask
        inputs = {"input_ids": input_ids, "attention_mask": mask}
        if token_type_ids is not None and "token_type_ids" in signature(self.encoder.forward).parameters:
            inputs["token_type_ids"] = token_type_ids
        states = self.encoder(**inputs).last_hidden_state  # (B, T, D)
        weight = mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weight).sum(1) / weight.sum(1).clamp(min=1)  # (B, D)
        logits = self.classifier(self.dropout(mean))
        loss = None if labels is None else _loss(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[-1] == 1:
        return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
    return F.cross_entropy(logits, labels)


def _no_pooler(config: PretrainedConfig) -> dict[str, bool]:
    """Return the argument that omits the unused pooler, if the architecture of the encoder has one."""
    architecture: Any = AutoModel._model_mapping[type(config)]
    return {"add_pooling_layer": False} if "add_pooling_layer" in signature(architecture).parameters else {}


MeanPoolingConfig.register_for_auto_class()  # type: ignore[no-untyped-call]
MeanPooledClassifier.register_for_auto_class("AutoModelForSequenceClassification")  # type: ignore[no-untyped-call]
