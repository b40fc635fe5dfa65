"""Fit a linear head on fixed features: L2-penalized logistic and ridge regression, solved to the optimum.

Shapes:  N examples · D features · C classes (1 for regression)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = tuple[Tensor, Tensor]  # weight (C, D) and bias (C,), in the type of the features


def logistic(
    features: Tensor,
    labels: Tensor,
    classes: int,
    strength: float,
    start: Weights | None = None,
    intercept: bool = True,
) -> Weights:
    """Minimize the mean cross entropy plus ``strength / 2`` times the sum of squared weights.

    Args:
        features: Standardized features, shape ``(N, D)``.
        labels: Class indices, shape ``(N,)``.
        classes: Number of classes (C).
        strength: Strength of the L2 penalty on the weights; the bias is not penalized.
        start: Start of the search; zeros by default.
        intercept: Whether to fit a bias; otherwise it is zero.

    Returns:
        Weight of shape ``(C, D)`` and bias of shape ``(C,)``.
    """
    zero = features.new_zeros(classes, features.shape[1]), features.new_zeros(classes)
    weight, bias = (each.clone().requires_grad_() for each in start or zero)
    chosen = [weight, bias] if intercept else [weight]
    optimizer = torch.optim.LBFGS(chosen, max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(features, weight, bias), labels) + strength / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def ridge(features: Tensor, labels: Tensor, strength: float, intercept: bool = True) -> Weights:
    """Minimize half the mean squared error plus ``strength / 2`` times the sum of squared weights.

    Solves the normal equations. Arguments and result are those of :func:`logistic`, with numbers as labels and C = 1.
    """
    targets = labels.to(features)
    mean, center = features.mean(0) * intercept, targets.mean() * intercept
    centered = features - mean
    gram = centered.T @ centered / len(features) + strength * torch.eye(features.shape[1]).to(features)
    weight = torch.linalg.solve(gram, centered.T @ (targets - center) / len(features))
    return weight[None], (center - weight @ mean)[None]


def scale_of(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every feature, shape ``(D,)`` each; the latter is at least 1e-6."""
    return features.mean(0), features.std(0) + 1e-6
