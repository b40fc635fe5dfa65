"""Importance scores of weights; masks prune the weights of lowest score.

| criterion | score of a weight w | source |
|---|---|---|
| magnitude | abs(w) | Han et al., arXiv:1506.02626 |
| wanda | abs(w) times the L2 norm of its input | Sun et al., arXiv:2306.11695 |
| gradient | abs(sum over steps of w times its gradient) | Molchanov et al., arXiv:1906.10771 |
| random | uniform in [0, 1) | |

Shapes:  O outputs · I inputs
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from slicefine_pl.sparsity.targets import Criterion, PrunableWeight


class Score:
    """Importance score of every weight of one matrix, with the statistics that its criterion needs.

    Args:
        each: The matrix.
        criterion: How weights are scored.
        seed: Seed of random scores.

    Attributes:
        inputs: Sum of squares of each input since the last masks, float32 of shape ``(I,)``; used by ``"wanda"``.
        products: Sum of weight times gradient since the last masks, float32 of the parameter's shape; used by
            ``"gradient"``.
    """

    def __init__(self, each: PrunableWeight, criterion: Criterion, seed: int) -> None:
        self.each = each
        self.criterion = criterion
        self.seed = seed
        self.inputs: Tensor | None = None
        self.products: Tensor | None = None
        self._hook: RemovableHandle | None = None

    def collect_inputs(self) -> None:
        """Collect the inputs of every forward pass in train mode from now on; has an effect for ``"wanda"`` only."""
        if self.criterion == "wanda" and not self.each.embedding and self._hook is None:
            self._hook = self.each.module.register_forward_pre_hook(self._collect_inputs)

    def weights(self) -> Tensor:
        """Return the scores of all weights: not negative, float32 of shape ``(O, I, ...)``.

        Raises:
            ValueError: The criterion needs inputs or gradients, and none were collected since the last masks.
        """
        weight = self.each.matrix(self.each.parameter.detach())
        if self.criterion == "random":
            generator = torch.Generator().manual_seed(self.seed)
            return torch.rand(weight.shape, generator=generator).to(weight.device)
        if self.criterion == "gradient":
            if self.products is None:
                raise ValueError(
                    f"criterion='gradient' needs a gradient of {self.each.name}, which has none; choose 'magnitude'."
                )
            return self.each.matrix(self.products).abs()
        if self.criterion == "magnitude" or self.each.embedding:  # inputs of an embedding are one-hot
            return weight.float().abs()
        if self.inputs is None:
            raise ValueError(
                f"criterion='wanda' needs inputs of {self.each.name}, and none were seen; choose 'magnitude'."
            )
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.inputs)  # processes see different data and must compute the same masks
        return weight.float().abs() * self.inputs.sqrt().view(-1, *[1] * (weight.ndim - 2))

    def collect_gradient(self) -> None:
        """Add the current gradient; call it before each optimizer step. Has an effect for ``"gradient"`` only."""
        parameter = self.each.parameter
        if self.criterion != "gradient" or parameter.grad is None:
            return
        if parameter.grad.isfinite().all():  # else the loss scaler skips this step
            product = (parameter.detach() * parameter.grad).float()
            self.products = product if self.products is None else self.products.add_(product)

    def reset(self) -> None:
        """Discard the collected statistics, after new masks were computed."""
        self.inputs = self.products = None

    def close(self) -> None:
        """Remove the hook from the module."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics collected since the last masks."""
        return {"inputs": self.inputs, "products": self.products}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore saved statistics."""
        device = self.each.parameter.device
        self.inputs, self.products = (
            None if state[name] is None else state[name].to(device) for name in ("inputs", "products")
        )

    @torch.no_grad()
    def _collect_inputs(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not module.training:
            return
        squares = args[0].detach().float().square()
        if isinstance(module, _ConvNd):
            squares = squares.sum([0, *range(2, squares.ndim)])
            if not module.transposed:  # a weight column serves one channel of every group
                squares = squares.view(module.groups, -1).sum(0)
        else:
            squares = squares.flatten(0, -2).sum(0)
        self.inputs = squares if self.inputs is None else self.inputs + squares
