"""Sliced ``torch.nn.MultiheadAttention``: one slice for each of the query, key and value projections.

torch's layer reads its projection weights without calling a submodule. So this file computes the whole attention, with
the operations of ``torch.nn.functional.multi_head_attention_forward`` in the same order. The output projection is a
``torch.nn.Linear`` submodule, and is sliced as such.

Shapes:  B batch · L queries · S keys · E width · H heads
Source:  Kowsher et al., SliceFine, arXiv:2510.08513.
"""

import math
from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicefine_pl.slicing.layers.base import SlicedLayer
from slicefine_pl.slicing.layers.linear import sliced_linear
from slicefine_pl.slicing.layout import MatrixLayout

LETTERS = "qkv"


class SlicedMultiheadAttention(SlicedLayer):
    """Sliced ``torch.nn.MultiheadAttention``, with a slice for each of the query, key and value projections."""

    embed_dim: int
    num_heads: int
    head_dim: int
    dropout: float
    batch_first: bool
    add_zero_attn: bool
    in_proj_bias: nn.Parameter | None
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None
    out_proj: nn.Linear
    _qkv_same_embed_dim: bool

    @classmethod
    def slicefine_layouts(cls, dense: nn.Module) -> list[MatrixLayout]:
        attention = cast("nn.MultiheadAttention", dense)
        if not attention._qkv_same_embed_dim:
            return [MatrixLayout(f"{letter}_proj_weight") for letter in LETTERS]
        width = attention.embed_dim
        return [MatrixLayout("in_proj_weight", letter, place * width, width) for place, letter in enumerate(LETTERS)]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments, shapes and results are those of ``torch.nn.MultiheadAttention``.

        Raises:
            RuntimeError: ``is_causal`` is given without ``attn_mask``, or a mask does not fit the keys.
        """
        self.slicefine_before_forward()
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal=True is a hint about attn_mask, which is None; pass the causal mask as well.")
        batched = query.ndim == 3
        q, k, v = (self._length_first(x) for x in self._project(query, key, value))
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        for name, mask in (("attn_mask", attn_mask), ("key_padding_mask", key_padding_mask)):
            if mask is not None and mask.shape[-1] != len(k):
                raise RuntimeError(f"{name} of shape {tuple(mask.shape)} does not fit {len(k)} keys.")
        k, v = self._extend(k, v)
        causal = is_causal and key_padding_mask is None and not need_weights  # torch ignores attn_mask in this case
        mask = None if causal else _joint_mask(attn_mask, key_padding_mask, q, self.num_heads, len(k))
        heads = self._split(q), self._split(k), self._split(v)
        out, weights = self._weigh(*heads, mask) if need_weights else (self._attend(*heads, mask, causal), None)
        out = self.out_proj(out.permute(2, 0, 1, 3).flatten(2))  # (L, B, E)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return out.squeeze(1), None if weights is None else weights.squeeze(0)
        return (out.transpose(0, 1) if self.batch_first else out), weights

    def _project(self, *inputs: Tensor) -> Iterator[Tensor]:
        """Project query, key and value, each to shape ``(..., E)``."""
        for number, (x, layout) in enumerate(zip(inputs, self.slicefine_layouts(self), strict=True)):
            weight = layout.view(self.slicefine_stored(layout.parameter))
            width = self.embed_dim
            bias = None if self.in_proj_bias is None else self.in_proj_bias.narrow(0, number * width, width)
            slice_ = self.slicefine_slice(layout.parameter, layout.part)
            yield F.linear(x, weight, bias) if slice_ is None else sliced_linear(x, weight, bias, slice_)

    def _length_first(self, x: Tensor) -> Tensor:
        """To shape ``(L, B, E)``, as torch computes. An input without a batch dimension gets one."""
        if x.ndim == 2:
            return x.unsqueeze(1)
        return x.transpose(0, 1) if self.batch_first else x

    def _extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the learned keys and values of ``add_bias_kv``, and the zeros of ``add_zero_attn``."""
        if self.bias_k is not None and self.bias_v is not None:
            batch = k.shape[1]
            k, v = torch.cat([k, self.bias_k.repeat(1, batch, 1)]), torch.cat([v, self.bias_v.repeat(1, batch, 1)])
        if self.add_zero_attn:
            zeros = k.new_zeros(1, *k.shape[1:])
            k, v = torch.cat([k, zeros]), torch.cat([v, zeros])
        return k, v

    def _split(self, x: Tensor) -> Tensor:
        """From ``(L, B, E)`` to ``(B, H, L, E / H)``."""
        return x.reshape(*x.shape[:2], self.num_heads, self.head_dim).permute(1, 2, 0, 3)

    def _weigh(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attend in every head; returns the output and the attention weights, shape ``(B, H, L, S)``."""
        scores = (q * math.sqrt(1 / self.head_dim)) @ k.transpose(-2, -1)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        if self.training and self.dropout > 0:
            weights = F.dropout(weights, self.dropout)
        return weights @ v, weights

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Attend in every head; returns the output, shape ``(B, H, L, E / H)``."""
        return F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0, causal)


def _joint_mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, heads: int, keys: int) -> Tensor | None:
    """Combine both masks into one that is added to the scores.

    Args:
        attn_mask: Attention mask, shape ``(L, S)`` or ``(B · H, L, S)``.
        padding: Key padding mask, shape ``(B, S)``.
        q: Queries, shape ``(L, B, E)``.
        heads: Number of heads (H).
        keys: Number of keys, including appended ones, which are never masked.

    Returns:
        The mask, broadcastable to ``(B, H, L, S)``; ``None`` without masks.

    Raises:
        RuntimeError: The attention mask does not fit the queries, or a mask has an integer type.
    """
    length, batch, _ = q.shape
    masks = []
    if attn_mask is not None:
        mask = _additive("attn_mask", attn_mask, q.dtype)
        if mask.shape[:-1] not in ((length,), (batch * heads, length)):
            raise RuntimeError(
                f"attn_mask of shape {tuple(mask.shape)} does not fit {length} queries of {batch} examples and {heads}"
                " heads; pass one of shape (L, S) or (B * H, L, S)."
            )
        mask = F.pad(mask, (0, keys - mask.shape[-1]))
        masks.append(mask if mask.ndim == 2 else mask.view(batch, heads, length, keys))
    if padding is not None:
        mask = _additive("key_padding_mask", padding, q.dtype)
        masks.append(F.pad(mask, (0, keys - mask.shape[-1])).view(batch, 1, 1, keys))
    return sum(masks[1:], masks[0]) if masks else None


def _additive(name: str, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a boolean mask (``True`` excludes) into zeros and minus infinity. A floating-point mask stays as it is."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
    if not mask.is_floating_point():
        raise RuntimeError(f"{name} has dtype {mask.dtype}; pass bool (True excludes) or floating-point numbers.")
    return mask.to(dtype)
