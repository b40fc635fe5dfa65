"""Which weights peft's LoRA adapts, and under which names it stores their factors.

Follows ``peft/tuners/lora/layer.py``. peft itself is not imported.

Shapes:  O outputs · I inputs · r rank · G groups of a convolution
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slicefine_pl.network.layers import transformers_conv1d
from slicefine_pl.slicing.low_rank import LowRank

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PREFIX = "base_model.model."  # of all tensors in a file of peft


class NotExpressible(Exception):
    """An adapter cannot express the change of a tensor; the message says why."""


@dataclass(frozen=True)
class LoraPlace:
    """A weight that LoRA adapts.

    Attributes:
        module: Name of the module that peft replaces.
        swapped: Whether the weight is stored as ``(I, O)``.
        embedding: Whether the factors are parameters of an embedding rather than weights of layers.
        groups: Number of groups of a convolution, each with factors of its own.
        unchanged: Name and shape of a second weight that peft adapts in this module, and that did not change.
    """

    module: str
    swapped: bool = False
    embedding: bool = False
    groups: int = 1
    unchanged: tuple[str, torch.Size] | None = None

    def tensors(self, blocks: Sequence[LowRank], shape: Sequence[int], dtype: torch.dtype) -> dict[str, Tensor]:
        """The factors as peft stores them.

        Args:
            blocks: The change of each group, all of one rank.
            shape: Shape of the weight.
            dtype: Type to store.
        """
        _, inputs, *kernel = shape
        into, out = [each.right for each in blocks], [each.left for each in blocks]
        if self.swapped:
            into, out = [each.T for each in out], [each.T for each in into]
        a, b = torch.cat(into), torch.cat(out)
        if kernel:  # the first factor is a convolution without groups
            parts = [each.view(-1, inputs, *kernel) for each in into]
            a = torch.cat([_of_all_inputs(each, group, self.groups) for group, each in enumerate(parts)])
            b = b.view(*b.shape, *[1] * len(kernel))
        names = ("lora_embedding_A", "lora_embedding_B") if self.embedding else ("lora_A.weight", "lora_B.weight")
        factors = {f"{PREFIX}{self.module}.{name}": each for name, each in zip(names, (a, b), strict=True)}
        if self.unchanged is not None:
            name, (outputs, inputs) = self.unchanged
            factors[f"{PREFIX}{name}.lora_A.weight"] = torch.zeros(len(a), inputs)
            factors[f"{PREFIX}{name}.lora_B.weight"] = torch.zeros(outputs, len(a))
        return {name: each.to(dtype).contiguous() for name, each in factors.items()}


def _of_all_inputs(weights: Tensor, group: int, groups: int) -> Tensor:
    """Weights ``(r, I / G, ...)`` of a group as weights ``(r, I, ...)`` of all inputs."""
    wide = weights.new_zeros(len(weights), groups, *weights.shape[1:])
    wide[:, group] = weights
    return wide.flatten(1, 2)


def lora_place(net: nn.Module, parameter: str) -> LoraPlace:
    """Where peft adapts a weight.

    Raises:
        NotExpressible: It does not, or does not compute what the change of this weight does.
    """
    owner, _, key = parameter.rpartition(".")
    module = net.get_submodule(owner)
    known: list[type[nn.Module]] = [nn.Linear, nn.Embedding, nn.MultiheadAttention, *CONVOLUTIONS, *_conv1d(module)]
    kind = next((each for each in known if isinstance(module, each)), None)
    if kind is None or key != ("in_proj_weight" if kind is nn.MultiheadAttention else "weight"):
        raise NotExpressible(f"it is a parameter of {type(module).__name__}")
    if not owner:
        raise NotExpressible("it belongs to the network itself, and peft replaces modules within a network")
    reader = net.get_submodule(unit(net, owner))
    if isinstance(reader, nn.TransformerEncoderLayer):
        raise NotExpressible("an nn.TransformerEncoderLayer evaluates without peft's layers")
    if isinstance(reader, nn.MultiheadAttention) and kind is nn.Linear:
        raise NotExpressible("peft adds the change of out_proj of an nn.MultiheadAttention twice")
    if type(module).forward is not kind.forward:
        raise NotExpressible(f"{type(module).__name__} computes something of its own")
    if isinstance(module, CONVOLUTIONS) and (module.padding_mode != "zeros" or set(module.dilation) != {1}):
        raise NotExpressible("peft adapts only convolutions without dilation that are padded with zeros")
    if isinstance(module, nn.MultiheadAttention):
        return LoraPlace(owner, unchanged=(f"{owner}.base_layer.out_proj", module.out_proj.weight.shape))
    if isinstance(module, CONVOLUTIONS):
        return LoraPlace(owner, groups=module.groups)
    return LoraPlace(owner, swapped=not isinstance(module, nn.Linear), embedding=isinstance(module, nn.Embedding))


def unit(net: nn.Module, module: str) -> str:
    """Name of the outermost module that reads weights of others within it, around a module; else of the module itself.

    An ``nn.MultiheadAttention`` reads those of its output projection, an ``nn.TransformerEncoderLayer`` all of its own.
    """
    parts = module.split(".")
    around = [".".join(parts[:count]) for count in range(len(parts))]
    readers = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
    return next((name for name in around if isinstance(net.get_submodule(name), readers)), module)


def _conv1d(module: nn.Module) -> list[type[nn.Module]]:
    found = transformers_conv1d(module)
    return [] if found is None else [found]
