"""Small models of real architectures, with an input: what the coverage test slices.

Each function returns a network in eval mode and float64, and a call that maps it to a tensor on which every layer acts.
"""

from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.swin_transformer import SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer

Call = Callable[[nn.Module], Tensor]
Small = tuple[nn.Module, Call]

WIDTHS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TOKENS = torch.tensor([[5, 8, 3, 7, 9], [4, 6, 2, 3, 9]])


def text(name: str, config: str, **settings: Any) -> Callable[[], Small]:
    """A transformers model over token ids; ``logits`` is what it returns."""

    def build() -> Small:
        options = {"vocab_size": 40, "pad_token_id": 0, **settings}
        model = getattr(transformers, name)(getattr(transformers, config)(**options))
        return model, lambda net: net(input_ids=TOKENS).logits

    return build


def t5() -> Small:
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    return model, lambda net: net(input_ids=TOKENS, decoder_input_ids=TOKENS[:, :3]).logits


def pixels(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def vision(name: str, config: str, *shape: int, **settings: Any) -> Callable[[], Small]:
    """A transformers model over pixel values."""

    def build() -> Small:
        model = getattr(transformers, name)(getattr(transformers, config)(**(WIDTHS | settings)))
        x = pixels(*shape)
        return model, lambda net: net(pixel_values=x).logits

    return build


def two_towers(name: str, config: str) -> Callable[[], Small]:
    """CLIP and SigLIP: the similarity of images and texts."""

    def build() -> Small:
        words = {**WIDTHS, "vocab_size": 40, "max_position_embeddings": 8, "projection_dim": 16, "eos_token_id": 9}
        images = {**WIDTHS, "image_size": 16, "patch_size": 8, "projection_dim": 16}
        settings = {"text_config": words, "vision_config": images}
        if name == "CLIPModel":
            settings["projection_dim"] = 16
        model = getattr(transformers, name)(getattr(transformers, config)(**settings))
        x = pixels(2, 3, 16, 16)
        return model, lambda net: net(input_ids=TOKENS, pixel_values=x).logits_per_image

    return build


def images(build_model: Callable[[], nn.Module], size: int) -> Callable[[], Small]:
    """A torchvision or timm model over images."""

    def build() -> Small:
        x = pixels(2, 3, size, size)
        return build_model(), lambda net: net(x)

    return build


def clips(build_model: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> Callable[[], Small]:
    """A pytorchvideo model over clips; SlowFast takes two."""

    def build() -> Small:
        x = [pixels(*shape) for shape in shapes]
        return build_model(), lambda net: net(list(x) if len(x) > 1 else x[0])  # SlowFast changes its list

    return build


def mvit() -> nn.Module:
    from pytorchvideo.models.vision_transformers import create_multiscale_vision_transformers

    return create_multiscale_vision_transformers(
        spatial_size=32, temporal_size=4, depth=2, patch_embed_dim=16, head_num_classes=3, norm="layernorm",
        embed_dim_mul=[[1, 2.0]], atten_head_mul=[[1, 2.0]], pool_q_stride_size=[[0, 1, 2, 2]],
        pool_kv_stride_adaptive=[1, 2, 2], pool_kvq_kernel=[3, 3, 3],
    )  # fmt: skip


def slowfast() -> nn.Module:
    from pytorchvideo.models.slowfast import create_slowfast

    return create_slowfast(model_depth=18, model_num_class=3, head_pool_kernel_sizes=((2, 1, 1), (8, 1, 1)))


def x3d() -> nn.Module:
    from pytorchvideo.models.x3d import create_x3d

    return create_x3d(input_clip_length=4, input_crop_size=32, model_num_class=3, depth_factor=1.0)


SWIN = {"patch_size": [2, 2], "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": [4, 4]}
VIDEO = {"image_size": 16, "num_frames": 4}

ARCHITECTURES: dict[str, Callable[[], Small]] = {
    "transformers BERT": text("BertForSequenceClassification", "BertConfig", **WIDTHS),
    "transformers RoBERTa": text("RobertaForSequenceClassification", "RobertaConfig", **WIDTHS),
    "transformers DeBERTa-v2": text(
        "DebertaV2ForSequenceClassification", "DebertaV2Config", **WIDTHS, relative_attention=True,
        pos_att_type=["p2c", "c2p"], position_buckets=4,
    ),
    "transformers ModernBERT": text("ModernBertForSequenceClassification", "ModernBertConfig", **WIDTHS),
    "transformers DistilBERT": text(
        "DistilBertForSequenceClassification", "DistilBertConfig", dim=16, hidden_dim=24, n_layers=2, n_heads=2
    ),
    "transformers GPT-2": text("GPT2ForSequenceClassification", "GPT2Config", n_embd=16, n_layer=2, n_head=2),
    "transformers Llama": text("LlamaForCausalLM", "LlamaConfig", **WIDTHS, num_key_value_heads=1),
    "transformers Qwen3": text("Qwen3ForCausalLM", "Qwen3Config", **WIDTHS, num_key_value_heads=1, head_dim=8),
    "transformers Gemma": text("GemmaForCausalLM", "GemmaConfig", **WIDTHS, num_key_value_heads=1, head_dim=8),
    "transformers T5": t5,
    "transformers ViT": vision("ViTForImageClassification", "ViTConfig", 2, 3, 16, 16, image_size=16, patch_size=8),
    "transformers DINOv2": vision(
        "Dinov2ForImageClassification", "Dinov2Config", 2, 3, 16, 16, image_size=16, patch_size=8
    ),
    "transformers CLIP": two_towers("CLIPModel", "CLIPConfig"),
    "transformers SigLIP": two_towers("SiglipModel", "SiglipConfig"),
    "transformers VideoMAE": vision(
        "VideoMAEForVideoClassification", "VideoMAEConfig", 2, 4, 3, 16, 16, **VIDEO, patch_size=8
    ),
    "transformers ViViT": vision(
        "VivitForVideoClassification", "VivitConfig", 2, 4, 3, 16, 16, **VIDEO, tubelet_size=[2, 8, 8]
    ),
    "transformers TimeSformer": vision(
        "TimesformerForVideoClassification", "TimesformerConfig", 2, 4, 3, 16, 16, **VIDEO, patch_size=8
    ),
    "torchvision vit_b_16": images(lambda: VisionTransformer(16, 8, 2, 2, 16, 24, num_classes=3), 16),
    "torchvision swin_t": images(lambda: SwinTransformer(**SWIN, num_classes=3), 16),
    "torchvision swin_v2_t": images(lambda: SwinTransformer(**SWIN, num_classes=3, block=SwinTransformerBlockV2), 16),
    "torchvision resnet50": images(lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=3), 32),
    "torchvision convnext_tiny": images(
        lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=3), 32
    ),
    "torchvision efficientnet_b0": images(lambda: torchvision.models.efficientnet_b0(num_classes=3), 32),
    "timm vit": images(lambda: timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=3), 32),
    "timm beit": images(
        lambda: timm.create_model(
            "beit_base_patch16_224", depth=2, embed_dim=32, num_heads=2, img_size=32, num_classes=3
        ), 32,
    ),
    "timm eva02": images(
        lambda: timm.create_model(
            "eva02_tiny_patch14_224", depth=2, embed_dim=24, num_heads=2, img_size=28, num_classes=3
        ), 28,
    ),
    "timm swinv2": images(
        lambda: timm.create_model(
            "swinv2_tiny_window8_256", img_size=32, embed_dim=12, depths=(1, 1), num_heads=(2, 2), window_size=4,
            num_classes=3,
        ), 32,
    ),
    "pytorchvideo MViT": clips(mvit, (2, 3, 4, 32, 32)),
    "pytorchvideo SlowFast": clips(slowfast, (1, 3, 2, 32, 32), (1, 3, 8, 32, 32)),
    "pytorchvideo X3D": clips(x3d, (1, 3, 4, 32, 32)),
}  # fmt: skip
