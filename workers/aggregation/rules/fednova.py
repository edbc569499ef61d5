"""FedNova: task vectors normalised by the amount of local training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from workers.aggregation.rule import Contribution, Rule, Scale


class FedNova(Rule):
    """Average of the task vectors per unit of local training, times the mean amount of training.

    V_mean = (Σ_s p_s n_s) · Σ_t p_t τ_t / n_t, where n_t is K_t (`steps`) or A_t (`lr_sum`).
    """

    name: ClassVar[str] = "fednova"
    source: ClassVar[str] = "Wang et al., arXiv 2007.07481, §4; simplified to steps in arXiv 2411.18607"

    scale: Scale = Field(default="mean", description=Rule.model_fields["scale"].description)
    normalize_by: Literal["steps", "lr_sum"] = Field(
        default="steps",
        description="n_t: number of optimiser steps K_t, or sum of learning rates A_t (full normalisation for SGD)",
    )

    @property
    def training_field(self) -> Literal["steps", "lr_sum"]:
        return self.normalize_by

    def coefficients(
        self, contributions: Sequence[Contribution], gram: NDArray[np.float64] | None = None
    ) -> list[float]:
        amounts = [float(getattr(one.training, self.normalize_by)) for one in contributions]
        mean = sum(one.weight * amount for one, amount in zip(contributions, amounts, strict=True))
        factor = self.factor(len(contributions))
        return [
            factor * one.weight * mean / amount for one, amount in zip(contributions, amounts, strict=True)
        ]
