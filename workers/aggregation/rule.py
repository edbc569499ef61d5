"""What a merging rule is.

A rule turns task vectors τ_t = θ_t − θ₀ into the merged task vector V; the merged model is θ = θ₀ + λ·V.
It is a pydantic model whose fields are its parameters, and two pure functions:

- ``coefficients``: numbers for the whole model or one tensor, computed once by the driver;
- ``aggregate``: the arithmetic on chunks of the task vectors, run by the shard workers.

Rules are also read by the API, which has no torch: a rule file imports torch for type checking only and
calls tensor methods. Chunks may have any shape and live on any device.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from taumerge.schemas import RequestPart, Training

if TYPE_CHECKING:
    from torch import Tensor

Scale = Literal["sum", "mean"]
Needs = Literal["nothing", "norms", "gram"]


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a rule knows of one model besides its tensors."""

    weight: float
    """p_t, normalised so that all weights sum to 1."""
    coefficient: float | None = None
    """c_t, where the request gave coefficients instead of weights."""
    training: Training = field(default_factory=Training)


class Rule(RequestPart, ABC):
    """Base of all rules. The class docstring of a rule states its formula; its first line is the summary."""

    model_config = ConfigDict(frozen=True)

    name: ClassVar[str]
    source: ClassVar[str]
    """Paper and equation."""
    accepts_weights: ClassVar[bool] = True
    accepts_coefficients: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    """Whether V = Σ a_t τ_t with numbers a_t, which are then the coefficients."""
    clips: ClassVar[bool] = False
    """Whether the coefficients shrink models by how far they are from the base."""

    scale: Scale = Field(
        default="sum", description="`sum`: V = T·V_mean; `mean`: V = V_mean (one-shot FedAvg)"
    )

    @property
    def needs(self) -> Needs:
        """What must be measured before aggregation: the norms ‖τ_t‖, the Gram matrix ⟨τ_s, τ_t⟩, or nothing."""
        return "nothing"

    @property
    def per_tensor(self) -> bool:
        """Whether the coefficients are computed for each tensor, rather than once for the model."""
        return False

    @property
    def training_field(self) -> Literal["steps", "lr_sum"] | None:
        """The field of the training record that every model must have."""
        return None

    def factor(self, count: int) -> float:
        """s of V = s·V_mean: T for ``sum``, 1 for ``mean``."""
        return float(count) if self.scale == "sum" else 1.0

    def coefficients(
        self, contributions: Sequence[Contribution], gram: NDArray[np.float64] | None = None
    ) -> list[float]:
        """One number for each model, by default s·p_t. ``gram`` is T×T; with ``norms`` only its diagonal is set."""
        factor = self.factor(len(contributions))
        return [factor * one.weight for one in contributions]

    def aggregate(self, task_vectors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
        """V for one chunk: T equally shaped float tensors in, one new tensor out; inputs stay as they are."""
        return linear_combination(task_vectors, coefficients)


def linear_combination(task_vectors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """Σ c_t τ_t, added in the order of the models."""
    total = task_vectors[0] * coefficients[0]
    for task_vector, coefficient in zip(task_vectors[1:], coefficients[1:], strict=True):
        total.add_(task_vector, alpha=coefficient)
    return total
