"""How each method makes a network ready: what is frozen, what is trained, what is put beside it.

Every function changes the network in place and leaves its class and structure alone, so that a LightningModule around
it goes on as before; whatever then requires a gradient is what the optimizer gets.  Slices are not here: they are
opened by ``slice_model`` or by the callback.

    prepare(net, head, targets, rank)

``head`` is the name of the output head, which every method trains whole, or None if there is no new one, as in a
language model; ``targets`` are the names of the layers to work on (linear maps, convolutions), ``rank`` is that of the
adapters.  A method that has nothing to train in a network says so with a ValueError.

Sources:  LoRA arXiv:2106.09685 · DoRA 2402.09353 · VeRA 2310.11454 · BitFit 2106.10199; adapters by the peft library
"""

from collections.abc import Callable
from typing import cast

import peft
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Prepare = Callable[[nn.Module, str | None, list[str], int], None]

QUERY_AND_VALUE = {"query", "value", "q_proj", "v_proj", "q", "v", "q_lin", "v_lin"}
FUSED = {"qkv", "c_attn", "query_key_value"}


def freeze(net: nn.Module, head: str | None) -> None:
    """Freeze all but the output head."""
    net.requires_grad_(False)
    _thaw(net, head)


def probe(net: nn.Module, head: str | None, targets: list[str], rank: int) -> None:
    """Train the head alone; no gradient enters the body."""
    if head is None:
        raise ValueError(
            "probe trains the output head alone, but head=None; name the head of a network with a new one."
        )
    freeze(net, head)


def floor(net: nn.Module, head: str | None, targets: list[str], rank: int) -> None:
    """Train the head alone, yet let the gradient reach the output of every target: what no method can beat.

    Whoever trains something in every target needs at least these gradients.  The input of the lowest targets gets none.
    """
    like = next(net.parameters())
    wants = torch.zeros((), device=like.device, dtype=like.dtype, requires_grad=True)

    def ask(module: nn.Module, inputs: object, output: Tensor) -> Tensor | None:
        return None if output.requires_grad else _Asks.apply(output, wants)

    freeze(net, head)
    for name in targets:
        net.get_submodule(name).register_forward_hook(ask)


class _Asks(torch.autograd.Function):
    """A tensor as it is, but it wants a gradient, and gives its sum to ``wants``.

    ``requires_grad_`` would break a compiled graph, and a gradient that went nowhere would be compiled away.
    """

    @staticmethod
    def forward(x: Tensor, wants: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient.sum()


def bitfit(net: nn.Module, head: str | None, targets: list[str], rank: int) -> None:
    """Train every bias, those of the norms included."""
    biases = [parameter for name, parameter in net.named_parameters() if name.endswith("bias")]
    if not biases:
        raise ValueError(f"BitFit trains biases, and {type(net).__name__} has none; choose another method.")
    freeze(net, head)
    for bias in biases:
        bias.requires_grad_(True)


def full(net: nn.Module, head: str | None, targets: list[str], rank: int) -> None:
    """Train everything."""
    net.requires_grad_(True)


def masked(net: nn.Module, head: str | None, targets: list[str], rank: int) -> None:
    """Form the full gradient of every target, and zero all but its first ``rank`` columns.

    The textbook way to train a slice.  Under Adam without weight decay the other columns stay bit-equal.
    """

    def mask(weight: Tensor) -> None:
        assert weight.grad is not None  # the hook runs right after it was added
        weight.grad[:, rank:] = 0

    freeze(net, head)
    for name in targets:
        weight = net.get_submodule(name).get_parameter("weight").requires_grad_(True)
        weight.register_post_accumulate_grad_hook(mask)  # type: ignore[no-untyped-call]


def lora(net: nn.Module, head: str | None, targets: list[str], rank: int) -> None:
    """Put LoRA beside every target."""
    _adapt(net, head, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))


def lora_query_value(net: nn.Module, head: str | None, targets: list[str], rank: int) -> None:
    """Put LoRA beside the queries and values of attention alone, its authors' own choice; beside qkv where fused."""
    lora(net, head, queries_and_values(targets), rank)


def queries_and_values(targets: list[str]) -> list[str]:
    """Those layers that are named as a query or value, or as the two in one.

    Raises:
        ValueError: If none is.
    """
    last = {name: name.rpartition(".")[2] for name in targets}
    chosen = [name for name in targets if last[name] in QUERY_AND_VALUE | FUSED]
    if not chosen:
        raise ValueError(
            f"No target is named as a query or value; the network's are named {sorted(set(last.values()))}, known are "
            f"{sorted(QUERY_AND_VALUE | FUSED)}. Choose a method that works on all targets."
        )
    return chosen


def dora(net: nn.Module, head: str | None, targets: list[str], rank: int) -> None:
    """Put DoRA beside every target."""
    _adapt(net, head, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, use_dora=True))


def vera(net: nn.Module, head: str | None, targets: list[str], rank: int) -> None:
    """Put VeRA beside every linear target; peft has none for convolutions."""
    linear = [name for name in targets if isinstance(net.get_submodule(name), nn.Linear)]
    if not linear:
        raise ValueError(f"VeRA adapts linear maps, and none of the {len(targets)} targets is one; choose lora.")
    # As inject_adapter_in_model does; it refuses VeRA, whose layers share two matrices, but each has them.
    peft.VeraModel(cast(PreTrainedModel, net), peft.VeraConfig(r=rank, target_modules=linear), "default")
    _thaw(net, head)


def _adapt(net: nn.Module, head: str | None, config: peft.PeftConfig) -> None:
    peft.inject_adapter_in_model(config, cast(PreTrainedModel, net))  # freezes all but the adapters
    _thaw(net, head)


def _thaw(net: nn.Module, head: str | None) -> None:
    if head is not None:
        net.get_submodule(head).requires_grad_(True)


METHODS: dict[str, Prepare] = {
    "floor": floor,
    "probe": probe,
    "bitfit": bitfit,
    "lora": lora,
    "lora, q and v": lora_query_value,
    "dora": dora,
    "vera": vera,
    "masked gradients": masked,
    "full": full,
}
