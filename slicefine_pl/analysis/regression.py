"""A linear head on frozen features, solved to its optimum.

Answers one question: what weights does an L2-penalised regression on standardised features give?  Which penalty, on
which examples, and what for, is the caller's.

Shapes:  N examples · D features · C classes (1 for numbers)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = tuple[Tensor, Tensor]  # (C, D) and (C,), of the features' type


def logistic(
    features: Tensor,
    labels: Tensor,
    classes: int,
    strength: float,
    start: Weights | None = None,
    intercept: bool = True,
) -> Weights:
    """Weights and intercepts with the least mean cross entropy plus ``strength / 2`` times the squared weights.

    Args:
        features: Shape ``(N, D)``.
        labels: Class indices, shape ``(N,)``.
        classes: How many (C).
        strength: Of the penalty; intercepts are free.
        start: Where the search begins; zero by default.
        intercept: Without, all stay zero.
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
    """The same for numbers, with half the mean squared error; from the normal equations."""
    targets = labels.to(features)
    mean, centre = features.mean(0) * intercept, targets.mean() * intercept
    centred = features - mean
    gram = centred.T @ centred / len(features) + strength * torch.eye(features.shape[1]).to(features)
    weight = torch.linalg.solve(gram, centred.T @ (targets - centre) / len(features))
    return weight[None], (centre - weight @ mean)[None]


def scale_of(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every feature, a little above zero, shape ``(D,)`` each."""
    return features.mean(0), features.std(0) + 1e-6
