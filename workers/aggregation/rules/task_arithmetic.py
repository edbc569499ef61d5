"""Task arithmetic, which is one-shot federated averaging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from workers.aggregation.rule import Contribution, Rule


class TaskArithmetic(Rule):
    """Weighted average of the task vectors.

    V_mean = Σ p_t τ_t. With a `coefficient` on every model V = Σ c_t τ_t instead, where negative c_t
    negate a task and `scale` does not apply.
    """

    name: ClassVar[str] = "task_arithmetic"
    source: ClassVar[str] = "Ilharco et al., arXiv 2212.04089; as FedAvg: McMahan et al., arXiv 1602.05629"
    accepts_coefficients: ClassVar[bool] = True

    def coefficients(
        self, contributions: Sequence[Contribution], gram: NDArray[np.float64] | None = None
    ) -> list[float]:
        given = [one.coefficient for one in contributions if one.coefficient is not None]
        return given or super().coefficients(contributions)
