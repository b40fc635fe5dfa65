"""What sparsity buys, honestly.

Answers one question: against which dense model does a sparse one win?  The same gain looks good beside a dense model of
as many non-zeros, modest at equal ideal cost, and is a loss beside the dense parent, which costs the same on GPUs.

Shapes:  elementwise on arrays of sparsities
Units:   ratios of parameters: above 1, the sparse model is the better one
Source:  Frantar et al., arXiv:2309.08520 (gain); Jin et al., *The Journey Matters*, arXiv:2501.12486 (average)
"""

from dataclasses import dataclass

from numpy.typing import ArrayLike

from slicefine_pl.scaling.costs import Array, Ideal, checked_sparsity, ideal
from slicefine_pl.scaling.law import ScalingLaw


@dataclass(frozen=True)
class Gains:
    """One sparse model, as a multiple of the dense models it may be measured against; all on the same data.

    Attributes:
        equal_inference: Against a dense model of as many non-zeros, where inference follows the non-zeros: the gain.
        equal_ideal_cost: Against the dense model that costs the same to train if FLOPs followed the non-zeros.
        equal_real_cost: Against the dense parent, which costs the same to train on today's GPUs; below 1 by far.
        average_parameters: The gain in Jin et al.'s view, in which the parameters count that training had on average.
    """

    equal_inference: Array
    equal_ideal_cost: Array
    equal_real_cost: Array
    average_parameters: Array


def gains(law: ScalingLaw, sparsity: ArrayLike, cost: Ideal = ideal) -> Gains:
    """All ratios at once.

    Args:
        law: The scaling law.
        sparsity: Final sparsities in [0, 1).
        cost: The schedule on which the weights were pruned.
    """
    gain = law.dense_equivalent(sparsity)
    return Gains(
        equal_inference=gain,
        equal_ideal_cost=gain / cost(sparsity),
        equal_real_cost=gain * (1 - checked_sparsity(sparsity)),
        average_parameters=cost(sparsity),
    )
