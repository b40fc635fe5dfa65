"""Model size, data, budget and hardware for which advice is requested."""

from dataclasses import dataclass

from slicefine_pl.scaling import costs
from slicefine_pl.scaling.units import format_count


@dataclass(frozen=True)
class DenseModel:
    """A trained dense model that could be pruned.

    Attributes:
        parameters: Parameters without embeddings.
        data: Images or tokens it was trained on.
        sunk: Whether its training is already paid for and does not count against the budget.
    """

    parameters: float
    data: float
    sunk: bool


@dataclass(frozen=True)
class AdviceRequest:
    """What the user has, and the size of the model to deploy.

    Attributes:
        nonzero_params: Non-zero parameters of the model to deploy, without embeddings.
        flops: Training budget in FLOPs.
        data: Available images or tokens; infinite if unlimited.
        tokens_per_item: Tokens per image; 1 if data are tokens.
        items_per_step: Images or tokens in one training step.
        two_four: Whether the hardware can multiply 2:4 matrices.
        speedup: The user's own timing of a 2:4 step: dense time divided by sparse time.
        dense: A trained dense model that could be pruned.

    Raises:
        ValueError: The budget or the data do not suffice for one training step.
    """

    nonzero_params: float
    flops: float
    data: float
    tokens_per_item: float
    items_per_step: float
    two_four: bool
    speedup: float | None = None
    dense: DenseModel | None = None

    def __post_init__(self) -> None:
        step = 6 * self.nonzero_params * self.items_per_step * self.tokens_per_item
        if self.flops < step:
            raise ValueError(
                f"compute={format_count(self.flops)} FLOPs is less than one step of {self.items_per_step:,.10g} items "
                f"with {format_count(self.nonzero_params)} parameters, {format_count(step)}; increase it, or reduce "
                "--items-per-step."
            )
        if self.data < self.items_per_step:
            raise ValueError(
                f"data={format_count(self.data)} is less than one step of {self.items_per_step:,.10g} items; give "
                "single images or tokens, or reduce --items-per-step."
            )

    @property
    def budget(self) -> float:
        """Budget in the unit of the law: 6·N·D times the cost multiple, with D in images or tokens."""
        return self.flops / self.tokens_per_item

    @property
    def real_cost(self) -> costs.Cost:
        """Training cost of sparsity on the user's hardware."""
        return costs.Measured(self.speedup) if self.two_four and self.speedup else costs.masked_dense
