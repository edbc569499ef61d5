"""FedGMA: gradient masked averaging by sign agreement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from workers.aggregation.rule import Rule, linear_combination

if TYPE_CHECKING:
    from torch import Tensor


class FedGMA(Rule):
    """Average of the task vectors, damped where their signs disagree.

    Agreement A_j = |Σ p_t sign(τ_tj)|; mask m_j = 1 where A_j ≥ ρ, else A_j; V_mean = m ⊙ Σ p_t τ_t.
    """

    name: ClassVar[str] = "fedgma"
    source: ClassVar[str] = "Tenison et al., arXiv 2201.11986, Algorithm 1"
    linear: ClassVar[bool] = False

    rho: float = Field(
        ge=0, le=1, allow_inf_nan=False, description="ρ, the agreement from which nothing is damped"
    )

    def aggregate(self, task_vectors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
        merged = linear_combination(task_vectors, coefficients)
        if len(set(coefficients)) == 1:
            return merged.mul_(self._mask_of_equals(task_vectors))
        return merged.mul_(self._mask(task_vectors, coefficients).to(merged.dtype))

    def _mask_of_equals(self, task_vectors: Sequence[Tensor]) -> Tensor:
        # With equal weights A is a count over T. Counting in integers (exact in float32) and reading ρ as the
        # decimal that the user wrote keeps rounding from flipping A = ρ. Booleans would be ten times as slow.
        count = len(task_vectors)
        needed = math.ceil(Fraction(repr(self.rho)) * count)
        votes = task_vectors[0].sign()
        for task_vector in task_vectors[1:]:
            votes.add_(task_vector.sign())
        votes.abs_()
        reached = (votes - (needed - 1)).clamp_(0, 1)
        return votes.div_(count).maximum(reached)

    def _mask(self, task_vectors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
        # In float64 the sum of up to 256 weights is right to 1e-13, so an A that close to ρ is equal to it.
        total = sum(coefficients)
        agreement = task_vectors[0].double().sign_().mul_(coefficients[0] / total)
        for task_vector, coefficient in zip(task_vectors[1:], coefficients[1:], strict=True):
            agreement.add_(task_vector.double().sign_(), alpha=coefficient / total)
        agreement.abs_()
        return agreement.maximum((agreement >= self.rho - 1e-12).double())
