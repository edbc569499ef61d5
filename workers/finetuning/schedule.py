"""The learning rate of each step: linear warm-up, then cosine to zero."""

from __future__ import annotations

import math

from taumerge.schemas import TrainSpec


def learning_rate_at(spec: TrainSpec, step: int) -> float:
    """η^(k) of step k = 0 … steps − 1: linear up to the peak, then cosine to zero.

    With steps > warmup_steps > 0 the sum over all steps is η·(steps/2 + 1).
    """
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    progress = (step - spec.warmup_steps) / (spec.steps - spec.warmup_steps)
    return spec.learning_rate * (1 + math.cos(math.pi * progress)) / 2
