"""Prune a network's weights to zero during training, and count what the zeros save.

``NetworkMasks`` holds one bool mask per pruned weight. It scores the weights (magnitude, wanda, gradient or random)
and prunes the lowest-scoring ones that fit a pattern (unstructured, n:m, blocks, rows or columns). In a training loop
of your own, call ``mask_gradients`` and ``mask_trained_weights`` at each step to keep the pruned weights at zero.
``Schedule`` says after which optimizer steps new masks are due, and how sparse they are. ``cost_report`` counts FLOPs
and bytes of a network, dense and with its zeros left out. ``export_semi_structured`` converts 2:4 linear layers to
torch's sparse tensors and times them.

A pruned weight stays an ordinary dense parameter that contains zeros, so checkpoints keep their format and size. The
package needs torch only; ``slicefine_pl.callbacks.SparsityCallback`` does all of this in a Lightning run.

Source:  Frantar et al., Scaling Laws for Sparsely-Connected Foundation Models, arXiv:2309.08520.
"""

from slicefine_pl.sparsity.masks import LayerSparsity, NetworkMasks, Scope
from slicefine_pl.sparsity.network_cost import CostReport, cost_report
from slicefine_pl.sparsity.patterns import Pattern, parse_pattern
from slicefine_pl.sparsity.schedules import Schedule
from slicefine_pl.sparsity.semi_structured import SemiStructuredReport, export_semi_structured
from slicefine_pl.sparsity.targets import Criterion

__all__ = [
    "CostReport",
    "Criterion",
    "LayerSparsity",
    "NetworkMasks",
    "Pattern",
    "Schedule",
    "Scope",
    "SemiStructuredReport",
    "cost_report",
    "export_semi_structured",
    "parse_pattern",
]
