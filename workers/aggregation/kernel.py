"""The arithmetic on one chunk: task vectors, their norms, and the merged values. Needs torch.

Numerics (the result depends on neither chunk sizes nor the number of workers):

- differences and sums in float32, or float64 where the inputs are float64; one rounding, to the output type;
- sums of squares and products over blocks of ``BLOCK`` elements, counted from the start of the tensor;
  the blocks are added in order, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.aggregation.rule import Rule

BLOCK = 1 << 16
"""Elements of one block of a sum; chunks must start at multiples of it. 256 KiB of float32: fits the L2 cache."""


class Workspace:
    """Reusable memory for the task vectors of one chunk of ``models`` models."""

    def __init__(self, models: int, elements: int, dtype: torch.dtype, device: torch.device) -> None:
        self._base = torch.empty(elements, dtype=dtype, device=device)
        self._rows = torch.empty((models, elements), dtype=dtype, device=device)

    def task_vectors(self, base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """θ₀ and each τ_t = θ_t − θ₀ in the dtype of the workspace; valid until the next call."""
        count = base.numel()
        wide_base = self._base[:count].copy_(base)
        rows = [
            row[:count].copy_(model).sub_(wide_base) for row, model in zip(self._rows, models, strict=True)
        ]
        return wide_base, rows


def accumulation_dtype(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """float64 where any input is float64, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def sums_of_squares(vectors: Sequence[Tensor]) -> NDArray[np.float64]:
    """‖x‖₂² of each of n vectors, shape (n,). Finite if and only if all elements are."""
    blocks = torch.stack([_block_sums(vector * vector) for vector in vectors])
    sums = np.array([_sum_in_order(row) for row in blocks.tolist()], dtype=np.float64)
    if vectors[0].dtype == torch.float32 and not np.isfinite(sums).all():
        return sums_of_squares([vector.double() for vector in vectors])  # squares beyond float32
    return sums


def gram_matrix(vectors: Sequence[Tensor]) -> NDArray[np.float64]:
    """⟨x_s, x_t⟩ of n vectors, shape (n, n)."""
    total = np.zeros((len(vectors), len(vectors)))
    for start in range(0, vectors[0].numel(), BLOCK):
        block = torch.stack([vector[start : start + BLOCK] for vector in vectors]).double()
        total += (block @ block.T).cpu().numpy()
    return total


def merge(
    rule: Rule,
    base: Tensor,
    task_vectors: Sequence[Tensor],
    coefficients: Sequence[float],
    scaling: float,
    out: Tensor,
) -> tuple[float, bool]:
    """Write θ₀ + λ·V to ``out``, rounded once to its dtype.

    Returns ‖V‖₂² of the chunk, and whether every merged value is finite and in the range of ``out``.
    """
    merged = rule.aggregate(task_vectors, coefficients)
    square = float(sums_of_squares([merged])[0])
    merged.mul_(scaling).add_(base)
    out.copy_(merged)
    return square, fits(merged, out.dtype)


def fits(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether ``values`` are finite and none becomes infinite when rounded to ``dtype``."""
    # The extreme values decide: rounding is monotonic, and NaN propagates through amax.
    extremes = torch.stack([values.amax(), values.amin()]).to(dtype)
    return bool(torch.isfinite(extremes).all())


def _block_sums(values: Tensor) -> Tensor:
    whole = values.numel() // BLOCK * BLOCK
    sums = values[:whole].view(-1, BLOCK).sum(1)
    return torch.cat([sums, values[whole:].sum(0, keepdim=True)]) if whole < values.numel() else sums


def _sum_in_order(values: Sequence[float]) -> float:
    total = 0.0
    for value in values:
        total += value
    return total
