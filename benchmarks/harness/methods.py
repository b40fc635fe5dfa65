"""How each method prepares a network: what is frozen, what is trained, what is added.

    prepare(net, head, targets, rank)

changes the network in place and keeps its class and structure, so that a LightningModule around it still works. The
optimizer then gets every parameter that requires a gradient.

- ``head``: name of the output head, which every method trains completely; ``None`` if there is no new head, as in a
  language model.
- ``targets``: names of the layers to work on, linear maps and convolutions.
- ``rank``: rank of the adapters; rows or columns of a slice.

A method that has nothing to train in a network raises ``ValueError``.

Sources:  LoRA arXiv:2106.09685 · DoRA 2402.09353 · VeRA 2310.11454 · MiSS 2409.15371 · BitFit 2106.10199
Adapters by the peft library.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, cast

import peft
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slicefine_pl.slicing import SliceHandle, slice_model
from slicefine_pl.slicing.directions import Basis
from slicefine_pl.slicing.lr_scale import LRScale
from slicefine_pl.slicing.schedule import AxisSchedule

Compiled = Literal["nothing", "network", "blocks"]
Prepare = Callable[[nn.Module, str | None, list[str], int], SliceHandle | None]

QUERY_AND_VALUE = {"query", "value", "q_proj", "v_proj", "q", "v", "q_lin", "v_lin"}
FUSED = {"qkv", "c_attn", "query_key_value"}


@dataclass(frozen=True)
class Method:
    """A way to train a network.

    Attributes:
        prepare: Prepares the network in place; returns the handle of its slices, if it has any.
        moves: Whether the slices move during training.
        compiled: What runs under ``torch.compile``: nothing, the whole network, or each of its blocks. Blocks of one
            class are compiled once, which takes seconds instead of minutes.
        backend: Backend of ``torch.compile``; ``"eager"`` traces the network, and generates no code.
        stores_network: Whether a user stores the whole network for each task, rather than the trained parameters.
    """

    prepare: Prepare
    moves: bool = False
    compiled: Compiled = "nothing"
    backend: str = "inductor"
    stores_network: bool = False


def freeze(net: nn.Module, head: str | None) -> None:
    """Freeze everything except the output head."""
    net.requires_grad_(False)
    _unfreeze(net, head)


def frozen_baseline(net: nn.Module, head: str | None, targets: list[str], rank: int) -> None:
    """Train only the head, but let the gradient reach the output of every target.

    A method that trains something in every target needs at least these gradients, so none can be cheaper. The lowest
    targets need no gradient of their input.
    """
    like = next(net.parameters())
    sink = torch.zeros((), device=like.device, dtype=like.dtype, requires_grad=True)

    def require(module: nn.Module, inputs: object, output: Tensor) -> Tensor | None:
        return None if output.requires_grad else _RequireGradient.apply(output, sink)

    freeze(net, head)
    for name in targets:
        net.get_submodule(name).register_forward_hook(require)


class _RequireGradient(torch.autograd.Function):
    """The identity, with an output that requires a gradient; its sum becomes the gradient of ``sink``.

    ``requires_grad_`` would break a compiled graph, and the compiler would remove a gradient that is not used.
    """

    @staticmethod
    def forward(x: Tensor, sink: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient.sum()


def slices(axis: AxisSchedule, lr_scale: LRScale = "auto", basis: Basis = "standard") -> Prepare:
    """Slices in the targets that are wide enough, written into the weights after each step as the callback does."""

    def prepare(net: nn.Module, head: str | None, targets: list[str], rank: int) -> SliceHandle:
        names = [name for name in targets if _narrowest(net.get_submodule(name), axis) >= rank]
        patterns = [f"^{re.escape(name)}$" for name in names]
        also_train = None if head is None else f"^{re.escape(head)}"
        handle = slice_model(
            net, rank=rank, axis=axis, targets=patterns, also_train=also_train, lr_scale=lr_scale, basis=basis
        )
        handle.write_manually()
        return handle

    return prepare


def _narrowest(layer: nn.Module, axis: AxisSchedule) -> int:
    """The largest rank that a slice of this layer can have."""
    outputs, inputs = layer.get_parameter("weight").shape[:2]
    return {"column": inputs, "row": outputs, "alternate": min(inputs, outputs)}[axis]


def lora(net: nn.Module, head: str | None, targets: list[str], rank: int) -> None:
    """LoRA on every target."""
    _adapt(net, head, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))


def lora_query_value(net: nn.Module, head: str | None, targets: list[str], rank: int) -> None:
    """LoRA on the queries and values of attention only, the choice of its authors; on qkv if they are fused."""
    lora(net, head, queries_and_values(targets), rank)


def queries_and_values(targets: list[str]) -> list[str]:
    """The layers that are named as a query or value, or as both fused.

    Raises:
        ValueError: No layer is.
    """
    last = {name: name.rpartition(".")[2] for name in targets}
    chosen = [name for name in targets if last[name] in QUERY_AND_VALUE | FUSED]
    if not chosen:
        raise ValueError(
            f"No target is named as a query or value. This network's targets are named {sorted(set(last.values()))}; "
            f"recognized are {sorted(QUERY_AND_VALUE | FUSED)}. Choose a method that works on all targets."
        )
    return chosen


def dora(net: nn.Module, head: str | None, targets: list[str], rank: int) -> None:
    """DoRA on every target."""
    _adapt(net, head, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, use_dora=True))


def miss(net: nn.Module, head: str | None, targets: list[str], rank: int) -> None:
    """MiSS on every linear target; peft does not offer it for convolutions."""
    _adapt(net, head, peft.MissConfig(r=rank, target_modules=_linear("MiSS", net, targets)))


def vera(net: nn.Module, head: str | None, targets: list[str], rank: int) -> None:
    """VeRA on every linear target; peft does not offer it for convolutions."""
    linear = _linear("VeRA", net, targets)
    # Like inject_adapter_in_model, which rejects VeRA because its layers share two matrices; each layer refers to them.
    peft.VeraModel(cast(PreTrainedModel, net), peft.VeraConfig(r=rank, target_modules=linear), "default")
    _unfreeze(net, head)


def _linear(method: str, net: nn.Module, targets: list[str]) -> list[str]:
    """The targets that are linear maps.

    Raises:
        ValueError: None is.
    """
    linear = [name for name in targets if isinstance(net.get_submodule(name), nn.Linear)]
    if not linear:
        raise ValueError(f"{method} adapts linear maps, and none of the {len(targets)} targets is one; choose lora.")
    return linear


def bitfit(net: nn.Module, head: str | None, targets: list[str], rank: int) -> None:
    """Train every bias, those of the norms included."""
    biases = [parameter for name, parameter in net.named_parameters() if name.endswith("bias")]
    if not biases:
        raise ValueError(f"BitFit trains biases, and {type(net).__name__} has none; choose another method.")
    freeze(net, head)
    for bias in biases:
        bias.requires_grad_(True)


def masked_gradients(net: nn.Module, head: str | None, targets: list[str], rank: int) -> None:
    """Compute the full gradient of every target, then zero all but its first ``rank`` columns.

    The textbook way to train a slice. Under Adam without weight decay the other columns stay bit-equal.
    """

    def mask(weight: Tensor) -> None:
        assert weight.grad is not None  # the hook runs right after accumulation
        weight.grad[:, rank:] = 0

    freeze(net, head)
    for name in targets:
        weight = net.get_submodule(name).get_parameter("weight").requires_grad_(True)
        weight.register_post_accumulate_grad_hook(mask)  # type: ignore[no-untyped-call]


def full(net: nn.Module, head: str | None, targets: list[str], rank: int) -> None:
    """Train everything."""
    net.requires_grad_(True)


def _adapt(net: nn.Module, head: str | None, config: peft.PeftConfig) -> None:
    peft.inject_adapter_in_model(config, cast(PreTrainedModel, net))  # freezes all but the adapters
    _unfreeze(net, head)


def _unfreeze(net: nn.Module, head: str | None) -> None:
    if head is not None:
        net.get_submodule(head).requires_grad_(True)


METHODS = {
    "frozen baseline": Method(frozen_baseline),
    "slice, column": Method(slices("column"), moves=True, stores_network=True),
    "slice, row": Method(slices("row"), moves=True, stores_network=True),
    "slice, alternate": Method(slices("alternate"), moves=True, stores_network=True),
    "slice, directions": Method(slices("column", basis="random"), stores_network=True),  # those of any basis that stay
    "slice, moving directions": Method(slices("column", basis="gradient"), moves=True, stores_network=True),
    "slice, static": Method(slices("column"), stores_network=True),  # PaCA's setting; peft 0.21 does not offer PaCA
    "lora": Method(lora),
    "lora, q and v": Method(lora_query_value),
    "dora": Method(dora),
    "vera": Method(vera),
    "miss": Method(miss),
    "bitfit": Method(bitfit),
    "masked gradients": Method(masked_gradients, stores_network=True),
    "full": Method(full, stores_network=True),
}
COMPILED = {
    f"{name}, compiled": replace(METHODS[name], compiled="network")
    for name in ("frozen baseline", "slice, column", "slice, row", "slice, alternate", "lora", "full")
}
