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
LEAST_SQUARE = 1e-30
"""Below it the square of a block, taken in float32, may have lost more than 1e-6 to elements whose squares vanish."""


class Workspace:
    """Reusable memory for the task vectors of one chunk of ``models`` models."""

    def __init__(self, models: int, elements: int, dtype: torch.dtype, device: torch.device) -> None:
        # Rows start at whole cache lines: how a dot product is summed may depend on where its vector starts.
        padded = -(-elements // 64) * 64
        self._base = torch.empty(padded, dtype=dtype, device=device)
        self._rows = torch.empty((models, padded), dtype=dtype, device=device)

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


def sums_of_squares(
    vectors: Sequence[Tensor], so_far: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """‖x‖₂² of each of n vectors, shape (n,), to 1e-6. Finite if and only if all elements are.

    ``so_far`` are the sums over earlier chunks; going on from them makes the result independent of the chunks.
    """
    sums = np.zeros(len(vectors)) if so_far is None else so_far.copy()
    for start in range(0, vectors[0].numel(), BLOCK):
        blocks = [vector[start : start + BLOCK] for vector in vectors]
        squares = np.array(torch.stack([torch.dot(block, block) for block in blocks]).tolist())
        # Squares of large and of small numbers leave the range of float32.
        for index in np.flatnonzero(~((squares > LEAST_SQUARE) & (squares < np.inf))):
            wide = blocks[index].double()
            squares[index] = float(torch.dot(wide, wide))
        sums += squares
    return sums


def gram_matrix(vectors: Sequence[Tensor], so_far: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """⟨x_s, x_t⟩ of n vectors, shape (n, n), added to those of earlier chunks."""
    total = np.zeros((len(vectors), len(vectors))) if so_far is None else so_far.copy()
    for start in range(0, vectors[0].numel(), BLOCK):
        block = torch.stack([vector[start : start + BLOCK] for vector in vectors]).double()
        total += (block @ block.T).cpu().numpy()
    return total


def aggregate(
    rule: Rule, task_vectors: Sequence[Tensor], coefficients: Sequence[float], square_so_far: float = 0.0
) -> tuple[Tensor, float]:
    """V of one chunk, and ‖V‖₂² added to that of earlier chunks."""
    merged = rule.aggregate(task_vectors, coefficients)
    return merged, float(sums_of_squares([merged], np.array([square_so_far]))[0])


def add_scaled(
    base: Tensor,
    merged: Tensor,
    scaling: float,
    square: float,
    out: Tensor,
    *,
    narrowed: bool = True,
    wide: Tensor | None = None,
) -> bool:
    """Write θ₀ + λ·V to ``out``, computed in the dtype of V and rounded once to that of ``out``.

    Args:
        square: ‖V‖₂² of a vector that holds this chunk.
        narrowed: whether θ₀ may lie outside the range of ``out``, as it cannot where it is stored in that dtype.
        wide: memory of V's shape and dtype for the values before they are rounded; default: new.

    Returns whether every merged value is in the range of ``out``.
    """
    values = out if out.dtype == merged.dtype else torch.empty_like(merged) if wide is None else wide
    if base.dtype == merged.dtype:
        torch.add(base, merged, alpha=scaling, out=values)
    else:
        values.copy_(base).add_(merged, alpha=scaling)
    if merged.dtype == torch.float32 and (rest := scaling - float(np.float32(scaling))):
        # λ = 0.3 is not exact in float32: what is missing would decide how many ties of 16-bit values are rounded.
        values.add_(merged, alpha=rest)
    if values is not out:
        out.copy_(values)
    # With |V| < 2⁶⁴ and such a λ, λ·V is less than half a unit in the last place of the largest float32, so adding it
    # to a finite θ₀ overflows neither float32 nor bfloat16 and need not be looked at. (NaN compares as false.)
    safe = (
        merged.dtype == torch.float32
        and out.dtype != torch.float16
        and not narrowed
        and scaling < 1e10
        and square < 2.0**128
    )
    return safe or fits(values, out.dtype)


def fits(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether ``values`` are finite and none becomes infinite when rounded to ``dtype``."""
    # The extreme values decide: rounding is monotonic, and NaN propagates through amax.
    extremes = torch.stack([values.amax(), values.amin()]).to(dtype)
    return bool(torch.isfinite(extremes).all())
