"""Directions of a layer's input along which a slice may lie, instead of single columns.

A slice of R columns changes a weight W (O, I) to W + Aᵀ Eᵀ, where E (I, R) picks columns and A (R, O) is trained. Here
E is replaced by a matrix P (I, R) with orthonormal columns, fixed between moves. The forward pass stays one dense
product, and only x P, R numbers of a token, is saved for backward. A convolution is treated alike: its inputs are
channels, its tokens positions, and A has a number for each output and each entry of the kernel.

Which directions are best is found with a thin sketch that ordinary backward passes add up: Xᵀ G Ω for the leading
directions of the weight's gradient, or Xᵀ X Ω for the principal axes of the inputs, where Ω is random and has a few
columns more than R. Neither the gradient nor the covariance is ever formed.

Shapes:  T tokens · I inputs · O outputs · R directions · C = R + 8 columns of a sketch
Sources:  Halko, Martinsson and Tropp, arXiv:0909.4061 (randomized range finder). LoRA uses principal axes of inputs in
EVA (arXiv:2410.07170), and the first gradient in LoRA-GA (arXiv:2407.05000) and LoRA-One (arXiv:2502.01235).
"""

import hashlib
from typing import Literal

import torch
from torch import Tensor

Basis = Literal["standard", "random", "gradient", "pca"]
"""Along what a slice lies: single columns or rows, random directions, those of the gradient, or of the inputs."""

SKETCHED = ("gradient", "pca")  # found from a sketch
OVERSAMPLING = 8  # columns of a sketch beyond R


def random_matrix(rows: int, columns: int, key: str) -> Tensor:
    """Standard normal numbers, float64, that depend on the key only; equal on every process."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_directions(size: int, rank: int, key: str) -> Tensor:
    """Random orthonormal directions, shape ``(size, rank)``, float64, that depend on the key only."""
    directions: Tensor = torch.linalg.qr(random_matrix(size, rank, key)).Q
    return directions


def leading_directions(sketch: Tensor, rank: int, others: Tensor) -> tuple[Tensor, int]:
    """The leading left singular vectors of a sketch ``(I, C)``.

    Args:
        sketch: The sketch.
        rank: Number of directions (R).
        others: Directions ``(I, R)`` that complete them, where the sketch has a lower rank.

    Returns:
        Orthonormal directions, shape ``(I, R)``, float64, and how many of them are the sketch's.
    """
    vectors, values, _ = torch.linalg.svd(sketch.double(), full_matrices=False)
    found = min(rank, int((values > values[0] * torch.finfo(sketch.dtype).eps).sum()))
    completed = torch.cat([vectors[:, :found], others.to(vectors)], dim=1)
    return torch.linalg.qr(completed).Q[:, :rank], found


def input_share(tokens: Tensor, directions: Tensor) -> Tensor:
    """Sums of the absolute values of inputs ``(t, I)`` and of their components along directions, shape ``(2,)``."""
    tokens = tokens.double()
    return torch.stack([tokens.abs().sum(), (tokens @ directions.to(tokens)).abs().sum()])
