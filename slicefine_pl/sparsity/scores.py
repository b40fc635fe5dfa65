"""How much each weight matters: the score by which masks keep it.

Answers: given a weight, its inputs and its gradient, which entries go first?  Knows neither patterns nor steps.

Shapes:  O outputs · I inputs · T tokens or places
Source:  magnitude: Han et al., arXiv:1506.02626; wanda: Sun et al., arXiv:2306.11695, |w| times the norm of its input;
         gradient: Molchanov et al., arXiv:1906.10771, |w times its gradient|.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from slicefine_pl.sparsity.targets import Criterion, Prunable


class Score:
    """Importance of every weight of one matrix.

    Args:
        each: The matrix.
        criterion: Which importance.
        seed: Of random scores.

    Attributes:
        inputs: Sum of squares of each input since the last masks, shape ``(I,)``, float32; for ``"wanda"``.
        products: Sum of weight times gradient since the last masks, of the parameter's shape; for ``"gradient"``.
    """

    def __init__(self, each: Prunable, criterion: Criterion, seed: int) -> None:
        self.each = each
        self.criterion = criterion
        self.seed = seed
        self.inputs: Tensor | None = None
        self.products: Tensor | None = None
        self._hook: RemovableHandle | None = None

    def watch(self) -> None:
        """See the inputs of every forward pass in train mode from now on; for ``"wanda"`` alone."""
        if self.criterion == "wanda" and not self.each.embedding and self._hook is None:
            self._hook = self.each.module.register_forward_pre_hook(self._see_inputs)

    def weights(self) -> Tensor:
        """Scores of all weights, at least 0, shape ``(O, I, ...)``, float32.

        Raises:
            ValueError: The criterion has seen no input, or no gradient, since the last masks.
        """
        weight = self.each.matrix(self.each.parameter.detach())
        if self.criterion == "random":
            generator = torch.Generator().manual_seed(self.seed)
            return torch.rand(weight.shape, generator=generator).to(weight.device)
        if self.criterion == "gradient":
            if self.products is None:
                raise ValueError(f"criterion='gradient' has seen no gradient of {self.each.name}; choose 'magnitude'.")
            return self.each.matrix(self.products).abs()
        if self.criterion == "magnitude" or self.each.embedding:  # whose inputs are one-hot
            return weight.float().abs()
        if self.inputs is None:
            raise ValueError(f"criterion='wanda' has seen no input of {self.each.name}; choose 'magnitude'.")
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.inputs)  # every process has seen other data, and all must make the same masks
        return weight.float().abs() * self.inputs.sqrt().view(-1, *[1] * (weight.ndim - 2))

    def see_gradient(self) -> None:
        """Add the gradient at hand, before an optimizer step; for ``"gradient"`` alone."""
        parameter = self.each.parameter
        if self.criterion != "gradient" or parameter.grad is None:
            return
        if parameter.grad.isfinite().all():  # else a loss scaler skips the step
            product = (parameter.detach() * parameter.grad).float()
            self.products = product if self.products is None else self.products.add_(product)

    def forget(self) -> None:
        """Start anew, after masks were made."""
        self.inputs = self.products = None

    def close(self) -> None:
        """Take the hook off the module."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def state_dict(self) -> dict[str, Any]:
        """What was seen since the last masks."""
        return {"inputs": self.inputs, "products": self.products}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what a saved score had seen."""
        device = self.each.parameter.device
        self.inputs, self.products = (
            None if state[name] is None else state[name].to(device) for name in ("inputs", "products")
        )

    @torch.no_grad()
    def _see_inputs(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        if not module.training:
            return
        squares = given[0].detach().float().square()
        if isinstance(module, _ConvNd):
            squares = squares.sum([0, *range(2, squares.ndim)])
            if not module.transposed:  # a column of the weight is a channel of every group
                squares = squares.view(module.groups, -1).sum(0)
        else:
            squares = squares.flatten(0, -2).sum(0)
        self.inputs = squares if self.inputs is None else self.inputs + squares
