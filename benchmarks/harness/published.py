"""Networks of published size for a GPU: their shapes with random weights, and a toy of each for a CPU.

A new network is one entry of ``PUBLISHED``. Weights are drawn on the device, because copying 16 GB takes longer than
drawing them.

Sources:  RoBERTa arXiv:1907.11692 · ViT 2010.11929 · VideoMAE 2203.12602 · Llama 3 2407.21783, and the configurations
published with Llama 3.1 and 3.2
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import timm
import torch
from transformers import (
    LlamaConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
)

from benchmarks.harness.networks import Workload, causal_lm, own_loss, pixels, random_words


@dataclass(frozen=True)
class Published:
    """A network at its published size, and a toy of the same architecture.

    Attributes:
        make: Takes the sizes of a batch, and the sizes of the network by name.
        size: Published sizes.
        toy: Sizes of the toy that differ.
        batches: Sizes of the batches on a GPU: (B, T) for texts, (B,) for images and clips.
        toy_batch: The same for the toy.
        unit: What throughput counts: tokens, images or clips.
    """

    make: Callable[..., Workload]
    size: dict[str, int]
    toy: dict[str, int]
    batches: tuple[tuple[int, ...], ...]
    toy_batch: tuple[int, ...]
    unit: str


def build_published(name: str, device: str, batch: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> Workload:
    """Build a network on a device; on a CPU its toy, with the toy's batch.

    Args:
        name: A key of ``PUBLISHED``.
        device: ``"cuda"`` or ``"cpu"``.
        batch: Sizes of the batch on a GPU.
        dtype: Type of all weights.
    """
    network = PUBLISHED[name]
    toy = device == "cpu"
    torch.manual_seed(0)
    with torch.device(device), _default_dtype(dtype):
        workload = network.make(
            *(network.toy_batch if toy else batch), **(network.size | network.toy if toy else network.size)
        )
    workload.net.train()
    return workload.to(device, dtype)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def roberta(batch: int, tokens: int, *, hidden: int, layers: int, heads: int) -> Workload:
    """A RoBERTa that classifies texts of up to 512 tokens."""
    config = RobertaConfig(
        vocab_size=50265,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=514,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    words = random_words(config.vocab_size, batch, tokens)
    inputs = {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": torch.arange(batch) % 2}
    return Workload(RobertaForSequenceClassification(config), inputs, own_loss, "classifier", hidden)


def vit(batch: int, *, hidden: int, layers: int, heads: int, pixels_wide: int) -> Workload:
    """A vision transformer of timm, with patches of 16 x 16 pixels."""
    sizes: dict[str, Any] = {"embed_dim": hidden, "depth": layers, "num_heads": heads, "img_size": pixels_wide}
    net = timm.create_model("vit_base_patch16_224", num_classes=10, **sizes)
    return pixels(net, "head", hidden, batch, 3, pixels_wide, pixels_wide)


def videomae(batch: int, *, hidden: int, layers: int, heads: int, pixels_wide: int, frames: int) -> Workload:
    """VideoMAE's encoder with a classifier."""
    config = VideoMAEConfig(
        image_size=pixels_wide,
        num_frames=frames,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )
    config.num_labels = 10
    shape = (batch, frames, 3, pixels_wide, pixels_wide)
    clips = torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu")
    inputs = {"pixel_values": clips, "labels": torch.arange(batch) % 10}
    net = VideoMAEForVideoClassification(config)
    # Not a buffer: otherwise every forward pass copies it from the CPU, and the GPU waits.
    embeddings: Any = net.videomae.embeddings
    embeddings.position_embeddings = embeddings.position_embeddings.to(next(net.parameters()))
    return Workload(net, inputs, own_loss, "classifier", hidden)


def llama3(
    batch: int, tokens: int, *, hidden: int, layers: int, heads: int, key_values: int, feed_forward: int,
    vocabulary: int, tied: bool,
) -> Workload:  # fmt: skip
    """A Llama 3."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_values,
        max_position_embeddings=8192,
        tie_word_embeddings=tied,
        use_cache=False,
    )
    return causal_lm(config, batch, tokens)


TOY = {"hidden": 64, "layers": 2, "heads": 2}
TOY_LLAMA = {**TOY, "key_values": 1, "feed_forward": 128, "vocabulary": 300}
LLAMA = {"key_values": 8, "feed_forward": 8192, "vocabulary": 128256}

PUBLISHED = {
    "Llama-3.2-3B": Published(
        llama3, {**LLAMA, "hidden": 3072, "layers": 28, "heads": 24, "tied": True}, TOY_LLAMA,
        batches=((4, 768), (8, 768)), toy_batch=(2, 12), unit="tokens",
    ),
    "Llama-3.2-1B": Published(
        llama3, {**LLAMA, "hidden": 2048, "layers": 16, "heads": 32, "tied": True}, TOY_LLAMA,
        batches=((4, 768), (16, 768)), toy_batch=(2, 12), unit="tokens",
    ),
    "RoBERTa-large": Published(
        roberta, {"hidden": 1024, "layers": 24, "heads": 16}, TOY,
        batches=((6, 512), (32, 512)), toy_batch=(2, 12), unit="tokens",  # 6 x 512 = 4 x 768; it takes 512 at most
    ),
    "ViT-B": Published(
        vit, {"hidden": 768, "layers": 12, "heads": 12, "pixels_wide": 224}, {**TOY, "pixels_wide": 32},
        batches=((64,), (256,)), toy_batch=(2,), unit="images",
    ),
    "VideoMAE-B": Published(
        videomae, {"hidden": 768, "layers": 12, "heads": 12, "pixels_wide": 224, "frames": 16},
        {**TOY, "pixels_wide": 32, "frames": 4},
        batches=((8,),), toy_batch=(2,), unit="clips",
    ),
    "ViT-L": Published(
        vit, {"hidden": 1024, "layers": 24, "heads": 16, "pixels_wide": 224}, {**TOY, "pixels_wide": 32},
        batches=((64,),), toy_batch=(2,), unit="images",
    ),
    "Llama-3.1-8B": Published(
        llama3, {**LLAMA, "hidden": 4096, "layers": 32, "heads": 32, "feed_forward": 14336, "tied": False}, TOY_LLAMA,
        batches=((4, 768),), toy_batch=(2, 12), unit="tokens",
    ),
}  # fmt: skip
"""In the order of importance: the first ones decide the goals for hidden states of 2,048 and more."""
