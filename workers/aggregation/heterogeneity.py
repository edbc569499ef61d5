"""How different models and their trainings are: closed forms on T×T numbers. No torch.

Symbols as in the paper (Tao et al., arXiv 2411.18607): weights p_t, sums of learning rates A_t, task vectors τ_t with
Gram matrix G = ⟨τ_s, τ_t⟩, V = Σ p_t τ_t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

CANCELLED = 1e-12
"""Below this part of Σ p_t²‖τ_t‖₂² what is left of ‖V‖₂² is rounding."""


def effective_weights(lr_sums: Sequence[float | None]) -> list[float] | None:
    """w_t = A_t / Σ_s A_s; None unless every A_t is known and they are near enough for every w_t to be above 0."""
    known = [one for one in lr_sums if one is not None]
    if len(known) < len(lr_sums):
        return None
    weights = [one / sum(known) for one in known]
    return weights if all(one > 0 for one in weights) else None


def chi_square(weights: Sequence[float], effective: Sequence[float]) -> float | None:
    """χ²(p‖w) = Σ_t (p_t − w_t)² / w_t: zero when the training is homogeneous; None where it is beyond float64."""
    total = sum((p - w) ** 2 / w for p, w in zip(weights, effective, strict=True))
    return total if math.isfinite(total) else None


def cosines(gram: Matrix) -> list[list[float | None]]:
    """T×T cosines of the task vectors; None where one of the two is zero."""
    gram = (gram + gram.T) / 2  # equal but for the last bit
    norms = np.sqrt(np.diag(gram))
    products = np.outer(norms, norms)
    return [
        [
            float(np.clip(inner / product, -1.0, 1.0)) if product > 0 else None
            for inner, product in zip(*rows, strict=True)
        ]
        for rows in zip(gram, products, strict=True)
    ]


def mean_cosine(cosine: Sequence[Sequence[float | None]]) -> float | None:
    """Mean over all pairs of different models whose task vectors are not zero; None without such a pair."""
    pairs = [one for row, values in enumerate(cosine) for one in values[:row] if one is not None]
    return sum(pairs) / len(pairs) if pairs else None


def average_norm(gram: Matrix, weights: Sequence[float]) -> float:
    """‖V‖₂ of V = Σ p_t τ_t."""
    p = np.array(weights)
    return float(np.sqrt(max(float(p @ gram @ p), 0.0)))


def shares(gram: Matrix, weights: Sequence[float]) -> list[float | None]:
    """Part of each model in ‖V‖₂²: p_t⟨τ_t, V⟩ / ‖V‖₂². They sum to 1; None where V is zero.

    A share is negative where the model pulls against the others, and may then be above 1 for one of these.
    """
    p = np.array(weights)
    parts = p * (gram @ p)
    total = float(parts.sum())
    if total <= CANCELLED * float(p**2 @ np.diag(gram)):
        return [None] * len(parts)
    return [float(part / total) for part in parts]
