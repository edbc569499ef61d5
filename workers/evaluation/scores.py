"""Normalised scores: each task's score relative to that of the model that was fine-tuned for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from taumerge.errors import JobFailed
from taumerge.schemas import Scores

__all__ = ["normalised"]


def normalised(scores: Mapping[str, float], individual: Mapping[str, float]) -> Scores:
    """Average normalised score (1/T) Σ_t scores[t] / individual[t], and the plain average beside it.

    Args:
        scores: what a model reaches, by task.
        individual: what the model fine-tuned for each task reaches on it, on the same split.

    Raises:
        JobFailed: ``individual_score_zero``, with the tasks in ``details``: nothing can be normalised by zero, by NaN,
            or by a score below zero, which would turn the order of the models round.
    """
    useless = [task for task in scores if not 0 < individual[task] < math.inf]
    if useless:
        raise JobFailed(
            "individual_score_zero",
            f"the model fine-tuned for task {useless[0]!r} scores {individual[useless[0]]:g} on it, and only a score "
            "above 0 can normalise others; check its data and classes, give it more validation data, or leave the "
            "task out",
            {"tasks": useless},
        )
    return Scores(
        score=fmean(score / individual[task] for task, score in scores.items()),
        average=fmean(scores.values()),
        tasks=dict(scores),
    )
