"""Dense models that a sparse model is worth, depending on what both have in common.

Compared with a dense model of as many non-zero parameters, a sparse model is clearly better. At equal ideal training
cost it is slightly better. At equal training cost on today's GPUs it is worse.

Shapes:  elementwise on arrays of sparsities
Units:   ratios of parameters; above 1, the sparse model is better
Source:  Frantar et al., arXiv:2309.08520 (gain); Jin et al., *The Journey Matters*, arXiv:2501.12486 (average)
"""

from dataclasses import dataclass

from numpy.typing import ArrayLike

from slicefine_pl.scaling.costs import Array, Ideal, checked_sparsity, ideal
from slicefine_pl.scaling.law import ScalingLaw


@dataclass(frozen=True)
class Gains:
    """Size of the dense model of equal loss, divided by the size of another dense model; all trained on the same data.

    Attributes:
        equal_inference: Divided by a dense model of as many non-zero parameters, whose inference costs the same if
            FLOPs follow the non-zeros. This is the gain of Frantar et al.
        equal_ideal_cost: Divided by the dense model that costs the same to train if FLOPs follow the non-zeros.
        equal_real_cost: Divided by the unpruned (parent) model, which costs the same to train on today's GPUs.
        average_parameters: The gain by Jin et al.: the average number of parameters during training, divided by the
            final number of non-zero parameters.
    """

    equal_inference: Array
    equal_ideal_cost: Array
    equal_real_cost: Array
    average_parameters: Array


def gains(law: ScalingLaw, sparsity: ArrayLike, cost: Ideal = ideal) -> Gains:
    """Compute all ratios.

    Args:
        law: The scaling law.
        sparsity: Final sparsities in [0, 1).
        cost: Ideal cost of the pruning schedule.

    Raises:
        ValueError: A sparsity is not in [0, 1).
    """
    gain = law.dense_equivalent(sparsity)
    return Gains(
        equal_inference=gain,
        equal_ideal_cost=gain / cost(sparsity),
        equal_real_cost=gain * (1 - checked_sparsity(sparsity)),
        average_parameters=cost(sparsity),
    )
