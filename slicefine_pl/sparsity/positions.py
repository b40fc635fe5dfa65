"""Count how often each weight matrix is applied in one forward pass.

A *position* is one application of a matrix to one input vector, in which every weight is multiplied once:

- a token, for a linear layer;
- an output position of a convolution, with padding, because dense code multiplies padding too;
- an input position of a transposed convolution.

The counts come from forward hooks while an example runs through the network.

Source:  ours; checked against torch's FlopCounterMode in tests/sparsity/test_network_cost.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from slicefine_pl.network.eval_mode import eval_mode
from slicefine_pl.sparsity.targets import PrunableWeight

Example = Tensor | Sequence[Any] | Mapping[str, Any]
ParameterKey = tuple[int, str]  # id of a module, name of its parameter


def call(net: nn.Module, example: Example) -> Any:
    """Run a network on a tensor, a sequence of positional arguments, or a mapping of keyword arguments."""
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


def count_positions(net: nn.Module, matrices: Sequence[PrunableWeight], example: Example) -> dict[str, tuple[int, ...]]:
    """Count the positions of each matrix in a forward pass in eval mode.

    Args:
        net: The network; unchanged afterwards.
        matrices: Matrices to count. Embeddings are looked up, not multiplied, and count 0.
        example: One batch, as :func:`call` takes it.

    Returns:
        Tuple of counts by parameter name. It has one count, except for ``in_proj_weight`` of attention, which stacks
        query, key and value: three counts. A count is 0 if no call was observed.
    """
    counts: dict[ParameterKey, list[int]] = {}

    def observe(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        for key, positions in _positions(module, args, kwargs, output).items():
            before = counts.get(key, [0] * len(positions))
            counts[key] = [old + new for old, new in zip(before, positions, strict=True)]

    modules = {id(each.module): each.module for each in matrices if not each.embedding}
    hooks = [module.register_forward_hook(observe, with_kwargs=True) for module in modules.values()]
    try:
        with evaluating(net):
            call(net, example)
    finally:
        for hook in hooks:
            hook.remove()
    return {each.name: tuple(counts.get((id(each.module), each.key), [0])) for each in matrices}


def _positions(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> dict[ParameterKey, tuple[int, ...]]:
    if isinstance(module, nn.MultiheadAttention):
        arguments = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        query, key, value = (_tokens(arguments[name]) for name in ("query", "key", "value"))
        own = id(module)
        return {
            (own, "in_proj_weight"): (query, key, value),
            (own, "q_proj_weight"): (query,),
            (own, "k_proj_weight"): (key,),
            (own, "v_proj_weight"): (value,),
            (id(module.out_proj), "weight"): (query,),  # torch reads it without calling out_proj
        }
    if isinstance(module, _ConvNd):
        first: Tensor = next(iter([*args, *kwargs.values()]))
        in_positions, out_positions = first.numel() // module.in_channels, output.numel() // module.out_channels
        return {(id(module), "weight"): (in_positions if module.transposed else out_positions,)}
    return {(id(module), "weight"): (_tokens(output),)}


def _tokens(x: Tensor) -> int:
    return x.numel() // x.shape[-1]
