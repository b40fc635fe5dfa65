"""How often is each weight used in one forward pass?

Runs an example through the network and counts, for every matrix, the positions at which all of its weights are
multiplied once: tokens of a linear map, places of a convolution's output (padding included, as dense code multiplies it
too), of its input where it is transposed.

Source:  ours; held to torch's FlopCounterMode in tests/sparsity/test_network_cost.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from slicefine_pl.eval_mode import eval_mode
from slicefine_pl.sparsity.targets import Prunable

Example = Tensor | Sequence[Any] | Mapping[str, Any]
ParameterKey = tuple[int, str]  # id of a module, name of its parameter


def call(net: nn.Module, example: Example) -> Any:
    """The output of a network for a tensor, a tuple or list of arguments, or a mapping of named ones."""
    if isinstance(example, Tensor):
        return net(example)
    return net(**example) if isinstance(example, Mapping) else net(*example)


@contextmanager
def evaluating(*nets: nn.Module) -> Iterator[None]:
    """Put networks in eval mode without gradients, and have torch's attention call its layers.

    The fast path of ``nn.TransformerEncoderLayer`` reads the weights of its layers without calling them, so that hooks
    on the layers would not run.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), eval_mode(*nets):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def count_positions(net: nn.Module, matrices: Sequence[Prunable], example: Example) -> dict[str, tuple[int, ...]]:
    """Count the positions that each matrix sees.

    Args:
        net: The network; unchanged afterwards.
        matrices: Those to count; embeddings are looked up, not multiplied, and stay 0.
        example: One batch, as :func:`call` takes it.

    Returns:
        By parameter name, the positions of each equal part of the outputs: one part, but for the query, key and value
        of attention, whose matrices are stored as one.  0 where no call was seen.
    """
    seen: dict[ParameterKey, list[int]] = {}

    def see(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        for key, positions in _positions(module, given, named, output).items():
            before = seen.get(key, [0] * len(positions))
            seen[key] = [old + new for old, new in zip(before, positions, strict=True)]

    watched = {id(each.module): each.module for each in matrices if not each.embedding}
    hooks = [module.register_forward_hook(see, with_kwargs=True) for module in watched.values()]
    try:
        with evaluating(net):
            call(net, example)
    finally:
        for hook in hooks:
            hook.remove()
    return {each.name: tuple(seen.get((id(each.module), each.key), [0])) for each in matrices}


def _positions(
    module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any
) -> dict[ParameterKey, tuple[int, ...]]:
    if isinstance(module, nn.MultiheadAttention):
        arguments = dict(zip(("query", "key", "value"), given, strict=False)) | named
        query, key, value = (_tokens(arguments[name]) for name in ("query", "key", "value"))
        own = id(module)
        return {
            (own, "in_proj_weight"): (query, key, value),
            (own, "q_proj_weight"): (query,),
            (own, "k_proj_weight"): (key,),
            (own, "v_proj_weight"): (value,),
            (id(module.out_proj), "weight"): (query,),  # read past its module
        }
    if isinstance(module, _ConvNd):
        first: Tensor = next(iter([*given, *named.values()]))
        places = first.numel() // module.in_channels if module.transposed else output.numel() // module.out_channels
        return {(id(module), "weight"): (places,)}
    return {(id(module), "weight"): (_tokens(output),)}


def _tokens(x: Tensor) -> int:
    return x.numel() // x.shape[-1]
