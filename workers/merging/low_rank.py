"""ΔW = scaling·B·A of a LoRA adapter, formed a chunk at a time. Needs torch."""

from __future__ import annotations

from torch import Tensor

from workers.aggregation.kernel import BLOCK


class LowRankProduct:
    """Elements of ΔW, which is never formed as a whole.

    Args:
        a: A, shape (rank, inputs).
        b: B, shape (outputs, rank), in the dtype of A.
        transposed: ΔWᵀ is wanted, shape (inputs, outputs).
    """

    def __init__(self, a: Tensor, b: Tensor, scaling: float, transposed: bool) -> None:
        self._left, self._right = (a.T, b.T) if transposed else (b, a)
        self._scaling = scaling

    def add_to(self, values: Tensor, start: int) -> None:
        """Add the elements from ``start`` on, a multiple of ``BLOCK``, row after row, to ``values`` in place."""
        columns = self._right.shape[1]
        # How a product is rounded depends on its shape, so the shape must not depend on how merges are cut.
        for begin in range(0, values.numel(), BLOCK):
            block = values[begin : begin + BLOCK]
            row, skipped = divmod(start + begin, columns)
            end = -(-(start + begin + block.numel()) // columns)
            product = self._left[row:end] @ self._right
            block.add_(product.view(-1)[skipped : skipped + block.numel()], alpha=self._scaling)
