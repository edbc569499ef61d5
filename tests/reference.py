"""The five rules in float64, straight from their definitions.

Slow, naive and independent of the code under test: sorting for medians, clipping on dense vectors, rational
numbers where an equality decides. A model is a mapping from tensor names to arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Model = Mapping[str, Array]


def merge(
    base: Model,
    models: Sequence[Model],
    method: Mapping[str, Any],
    *,
    scaling: float = 1.0,
    weights: Sequence[float] | None = None,
    coefficients: Sequence[float] | None = None,
    amounts: Sequence[float] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """θ₀ + λ·V. ``amounts`` are the n_t of FedNova."""
    task_vectors = {
        name: np.stack([model[name].astype(np.float64).ravel() - array.ravel() for model in models])
        for name, array in wide(base).items()
    }
    if method.get("norm_scope") == "tensor":
        merged = {
            name: merged_vector(rows, method, weights, coefficients, amounts)
            for name, rows in task_vectors.items()
        }
    else:
        everything = np.concatenate(list(task_vectors.values()), axis=1)
        vector = merged_vector(everything, method, weights, coefficients, amounts)
        ends = np.cumsum([rows.shape[1] for rows in task_vectors.values()])
        merged = dict(zip(task_vectors, np.split(vector, ends[:-1]), strict=True))
    return {name: array + scaling * merged[name].reshape(array.shape) for name, array in wide(base).items()}


def merged_vector(
    rows: NDArray[np.float64],
    method: Mapping[str, Any],
    weights: Sequence[float] | None = None,
    coefficients: Sequence[float] | None = None,
    amounts: Sequence[float] | None = None,
) -> NDArray[np.float64]:
    """V of the task vectors that are the rows of ``rows``."""
    count = len(rows)
    name = method["name"]
    if coefficients is not None:
        return sum_of(coefficients, rows)
    p = normalised([1.0] * count if weights is None else weights)
    default = "mean" if name in ("fednova", "median") else "sum"
    factor = count if method.get("scale", default) == "sum" else 1
    average = sum_of([factor * weight for weight in p], rows)
    if name == "task_arithmetic":
        return average
    if name == "fednova":
        assert amounts is not None
        n = [Fraction(repr(amount)) for amount in amounts]
        mean = sum(weight * amount for weight, amount in zip(p, n, strict=True))
        return sum_of([factor * mean * weight / amount for weight, amount in zip(p, n, strict=True)], rows)
    if name == "fedgma":
        return agreement_mask(rows, p, method["rho"]) * average
    if name == "median":
        ordered = np.sort(rows, axis=0)
        lower, upper = ordered[(count - 1) // 2], ordered[count // 2]
        median: NDArray[np.float64] = lower if method.get("even") == "lower" else (lower + upper) / 2
        return factor * median
    if name == "cclip":
        return factor * centred_clipping(rows, p, method["rho"], method.get("iterations", 1))
    raise ValueError(name)


def agreement_mask(rows: NDArray[np.float64], weights: Sequence[Fraction], rho: float) -> NDArray[np.float64]:
    """1 where A_j = |Σ p_t sign(τ_tj)| ≥ ρ, else A_j; compared as rational numbers, ρ as the decimal it is written."""
    signs = np.sign(rows).astype(np.int64)
    codes = sum((3**place) * (row + 1) for place, row in enumerate(signs))
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    values = []
    for column in signs.T[first].tolist():
        agreement = abs(sum((w * s for w, s in zip(weights, column, strict=True)), Fraction(0)))
        values.append(1.0 if agreement >= Fraction(repr(rho)) else float(agreement))
    return np.array(values, dtype=np.float64)[inverse]


def centred_clipping(
    rows: NDArray[np.float64], weights: Sequence[Fraction], rho: float, iterations: int
) -> NDArray[np.float64]:
    """v ← v + Σ p_t (τ_t − v)·min(1, ρ/‖τ_t − v‖), from v = 0."""
    v = np.zeros(rows.shape[1])
    for _ in range(iterations):
        step = np.zeros_like(v)
        for weight, row in zip(weights, rows, strict=True):
            distance = float(np.linalg.norm(row - v))
            step += float(weight) * (row - v) * (1.0 if distance <= rho else rho / distance)
        v = v + step
    return v


def sum_of(factors: Sequence[float | Fraction], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σ c_t τ_t."""
    total: NDArray[np.float64] = np.einsum("t,tj->j", np.array([float(one) for one in factors]), rows)
    return total


def normalised(weights: Sequence[float]) -> list[Fraction]:
    """The weights, as the decimals they are written, over their sum."""
    exact = [Fraction(repr(weight)) for weight in weights]
    return [weight / sum(exact) for weight in exact]


def wide(model: Model) -> dict[str, NDArray[np.float64]]:
    """The model in float64."""
    return {name: array.astype(np.float64) for name, array in model.items()}


FLOATS = {"bfloat16": (8, -126), "float16": (11, -14)}
"""Significant bits of an element type, and the exponent of its smallest normal number."""


def correctly_rounded(values: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """Each value rounded once, half to even, to a 16-bit type; no value may be beyond its range."""
    unit = last_place(values, dtype)
    return np.rint(values / unit) * unit


def last_place(values: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """One unit in the last place of each value as a 16-bit type."""
    bits, smallest = FLOATS[dtype]
    exponents = np.frexp(values)[1] - 1
    unit: NDArray[np.float64] = np.ldexp(1.0, np.maximum(exponents, smallest) - bits + 1)
    return unit
