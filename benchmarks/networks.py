"""The networks that benchmarks train: real architectures with random weights, without dropout, and a batch for each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

BERTS = {  # hidden, layers, heads, intermediate, batch, tokens
    "minilm": (384, 6, 12, 1536, 16, 128),
    "base": (768, 12, 12, 3072, 8, 128),
    "large": (1024, 6, 16, 4096, 4, 256),
}


@dataclass
class Task:
    """A network and what it is trained on.

    Attributes:
        net: In train mode, on the CPU.
        loss: Loss of a copy of the network on the batch; moves the batch to where the copy is.
        head: Name of the output head.
        bottom: Name of the first module, whose output the gradient has to reach.
    """

    net: nn.Module
    loss: Callable[[nn.Module], Tensor]
    head: str
    bottom: str

    def targets(self) -> list[str]:
        """Names of the layers that every method works on: linear maps and convolutions, without grouped ones."""
        return [
            name
            for name, module in self.net.named_modules()
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d | nn.Conv3d) and module.groups == 1)
            if name != self.head
        ]


def bert(size: str) -> Task:
    hidden, layers, heads, intermediate, batch, tokens = BERTS[size]
    config = BertConfig(  # two classes by default
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(1000, 30000, (batch, tokens), generator=generator)
    labels = torch.randint(2, (batch,), generator=generator)

    def loss(net: nn.Module) -> Tensor:
        device = next(net.parameters()).device
        result: Tensor = net(
            input_ids=words.to(device),
            attention_mask=torch.ones_like(words, device=device),
            labels=labels.to(device),
        ).loss
        return result

    return Task(BertForSequenceClassification(config), loss, "classifier", "bert.embeddings")


def pixels(net: nn.Module, head: str, bottom: str, *shape: int) -> Task:
    """A classifier of images or clips, shape ``(B, 3, ...)``, with ten classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    labels = torch.randint(10, (shape[0],), generator=generator)

    def loss(net: nn.Module) -> Tensor:
        device = next(net.parameters()).device
        return F.cross_entropy(net(x.to(device)), labels.to(device))

    return Task(net, loss, head, bottom)


def resnet50() -> Task:
    return pixels(torchvision.models.resnet50(num_classes=10), "fc", "conv1", 8, 3, 128, 128)


def vit() -> Task:
    net = timm.create_model("vit_small_patch16_224", num_classes=10)
    return pixels(net, "head", "patch_embed", 4, 3, 224, 224)


def mvit() -> Task:
    from pytorchvideo.models.vision_transformers import create_multiscale_vision_transformers

    net = create_multiscale_vision_transformers(
        spatial_size=112, temporal_size=8, depth=8, patch_embed_dim=96, head_num_classes=10, head_dropout_rate=0.0,
        embed_dim_mul=[[1, 2.0], [3, 2.0]], atten_head_mul=[[1, 2.0], [3, 2.0]],
        pool_q_stride_size=[[1, 1, 2, 2], [3, 1, 2, 2]], pool_kv_stride_adaptive=[1, 4, 4],
        pool_kvq_kernel=[3, 3, 3],
    )  # fmt: skip
    return pixels(net, "head.proj", "patch_embed", 2, 3, 8, 112, 112)


def x3d() -> Task:
    from pytorchvideo.models.x3d import create_x3d

    net = create_x3d(
        input_clip_length=13, input_crop_size=160, model_num_class=10, dropout_rate=0.0, head_activation=None
    )
    return pixels(net, "blocks.5.proj", "blocks.0", 2, 3, 13, 160, 160)


NETWORKS: dict[str, Callable[[], Task]] = {
    **{size: partial(bert, size) for size in BERTS},
    "resnet50": resnet50,
    "vit": vit,
    "mvit": mvit,
    "x3d": x3d,
}


def build(name: str) -> Task:
    """One of the networks, with the same random weights each time."""
    torch.manual_seed(0)
    task = NETWORKS[name]()
    task.net.train()
    return task
