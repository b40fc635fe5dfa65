"""Sliced multi-head attention: torch's own layer, whose query, key and value maps train only a slice.

``torch.nn.MultiheadAttention`` reads its weights without calling any layer, so it is computed anew here, with the same
operations in the same order.  Its output projection is a layer of its own, and is sliced as a linear map.

Shapes:  B batch · L queries · S keys · E width · H heads
Source:  Kowsher et al., SliceFine, arXiv:2510.08513; ``torch.nn.functional.multi_head_attention_forward`` fixes the
behaviour.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicefine_pl.slicing.distributed.shards import MatrixLayout
from slicefine_pl.slicing.layers.base import SlicedLayer
from slicefine_pl.slicing.layers.linear import sliced_linear

LETTERS = "qkv"


class SlicedMultiheadAttention(SlicedLayer):
    """``torch.nn.MultiheadAttention``: a slice for each of the query, key and value maps."""

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
        """Attend; arguments, shapes and results are those of ``torch.nn.MultiheadAttention``."""
        self.slicefine_before_forward()
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal=True is a hint about attn_mask, which is None; pass the causal mask as well.")
        batched = query.ndim == 3
        # Length first, as torch computes it; a query without a batch gets one.
        q, k, v = (self._project(letter, x) for letter, x in zip(LETTERS, (query, key, value), strict=True))
        if not batched:
            q, k, v = q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif self.batch_first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        for name, mask in (("attn_mask", attn_mask), ("key_padding_mask", key_padding_mask)):
            if mask is not None and mask.shape[-1] != len(k):
                raise RuntimeError(f"{name} of shape {tuple(mask.shape)} does not fit {len(k)} keys.")
        k, v = self._extend(k, v)
        causal = is_causal and key_padding_mask is None and not need_weights  # then torch drops the mask as well
        mask = None if causal else _joint_mask(attn_mask, key_padding_mask, q, self.num_heads, len(k))
        heads = self._split(q), self._split(k), self._split(v)
        out, weights = self._weigh(*heads, mask) if need_weights else (self._attend(*heads, mask, causal), None)
        out = self.out_proj(out.permute(2, 0, 1, 3).flatten(2))  # (L, B, E)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return out.squeeze(1), None if weights is None else weights.squeeze(0)
        return (out.transpose(0, 1) if self.batch_first else out), weights

    def _project(self, letter: str, x: Tensor) -> Tensor:
        """Query, key or value, shape ``(..., E)``."""
        place = LETTERS.index(letter)
        layout = self.slicefine_layouts(self)[place]
        weight = layout.view(self.slicefine_stored(layout.parameter))
        width = self.embed_dim
        bias = None if self.in_proj_bias is None else self.in_proj_bias.narrow(0, place * width, width)
        slice_ = self.slicefine_slice(layout.parameter, layout.part)
        return F.linear(x, weight, bias) if slice_ is None else sliced_linear(x, weight, bias, slice_)

    def _extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values with those that are learned, or zero, behind them."""
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
        """Attend in every head, and return the attention weights, shape ``(B, H, L, S)``, as well."""
        scores = (q * math.sqrt(1 / self.head_dim)) @ k.transpose(-2, -1)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        if self.training and self.dropout > 0:
            weights = F.dropout(weights, self.dropout)
        return weights @ v, weights

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Attend in every head, shape ``(B, H, L, E / H)``."""
        return F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0, causal)


def _joint_mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, heads: int, keys: int) -> Tensor | None:
    """Both masks as one that is added to the scores, shape broadcastable to ``(B, H, L, S)``.

    Args:
        attn_mask: Shape ``(L, S)`` or ``(B H, L, S)``.
        padding: Shape ``(B, S)``.
        q: Queries, shape ``(L, B, E)``.
        heads: Their number.
        keys: Keys with those that are learned or zero, which no mask hides.
    """
    length, batch, _ = q.shape
    masks = []
    if attn_mask is not None:
        mask = _additive("attn_mask", attn_mask, q.dtype)
        if mask.shape[:-1] not in ((length,), (batch * heads, length)):
            raise RuntimeError(
                f"attn_mask of shape {tuple(mask.shape)} does not fit {length} queries of {batch} examples and {heads}"
                f" heads; give (L, S) or (B * H, L, S)."
            )
        mask = F.pad(mask, (0, keys - mask.shape[-1]))
        masks.append(mask if mask.ndim == 2 else mask.view(batch, heads, length, keys))
    if padding is not None:
        mask = _additive("key_padding_mask", padding, q.dtype)
        masks.append(F.pad(mask, (0, keys - mask.shape[-1])).view(batch, 1, 1, keys))
    return sum(masks[1:], masks[0]) if masks else None


def _additive(name: str, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask whose ``True`` forbids becomes one of zeros and minus infinity; one of numbers is added as it is."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
    if not mask.is_floating_point():
        raise RuntimeError(f"{name} is of {mask.dtype}; give bool, where True forbids, or floating-point numbers.")
    return mask.to(dtype)
