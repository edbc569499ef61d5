"""Centred clipping around the base model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from workers.aggregation.rule import Contribution, Needs, Rule


class CClip(Rule):
    """Average of the task vectors, each clipped to a ball of radius ρ around the current estimate.

    v₀ = 0 (the base model); v ← v + Σ p_t (τ_t − v)·min(1, ρ/‖τ_t − v‖₂), `iterations` times; V_mean = v.
    Every v is a combination Σ a_t τ_t, so its distances follow from the Gram matrix ⟨τ_s, τ_t⟩ of one
    measuring pass, whatever the number of iterations.
    """

    name: ClassVar[str] = "cclip"
    source: ClassVar[str] = "Karimireddy et al., arXiv 2012.10333, Algorithm 2"
    clips: ClassVar[bool] = True

    rho: float = Field(gt=0, allow_inf_nan=False, description="ρ, the clipping radius")
    iterations: int = Field(default=1, ge=1, le=1000, description="number of clipping steps")
    norm_scope: Literal["model", "tensor"] = Field(
        default="model", description="‖·‖₂ over all merged parameters of the model, or tensor by tensor"
    )

    @property
    def needs(self) -> Needs:
        return "norms" if self.iterations == 1 else "gram"

    @property
    def per_tensor(self) -> bool:
        return self.norm_scope == "tensor"

    def coefficients(
        self, contributions: Sequence[Contribution], gram: NDArray[np.float64] | None = None
    ) -> list[float]:
        assert gram is not None
        count = len(contributions)
        weights = np.array([one.weight for one in contributions])
        estimate = np.zeros(count)
        for _ in range(self.iterations):
            offsets = np.eye(count) - estimate  # row t holds τ_t − v in terms of the τ
            squares = np.einsum("ti,ij,tj->t", offsets, gram, offsets)
            distances = np.sqrt(np.maximum(squares, 0.0))
            clipping = self.rho / np.maximum(distances, self.rho)
            estimate = estimate + (weights * clipping) @ offsets
        return [float(value) for value in self.factor(count) * estimate]
