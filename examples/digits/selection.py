"""Choosing λ and ρ of a rule on validation data, each candidate merged by the service."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taumerge import Client
from taumerge.schemas import MergeResult

SERVER_STEPS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
"""Candidates of β, the step along the mean of the task vectors that every rule is compared at.

λ = β for a rule whose V is a mean, λ = β/T for one whose V is a sum.
"""
SCALES = {
    "task_arithmetic": "sum",
    "fednova": "mean",
    "fedgma": "sum",
    "median": "mean",
    "cclip": "sum",
}
"""The five rules, with the scale that each has by default."""


@dataclass(frozen=True)
class Models:
    """What is merged: directories of the base and of the fine-tuned models."""

    base: Path
    finetuned: Sequence[Path]


@dataclass(frozen=True)
class Selected:
    """The candidate of a rule that scored best on validation data."""

    method: dict[str, Any]
    scaling: float
    score: float


def merge(
    client: Client,
    models: Models,
    method: Mapping[str, Any],
    scaling: float,
    output: Path,
    statistics: str = "none",
) -> MergeResult:
    """Merge through the service into ``output``, replacing what is there."""
    job = client.merge(
        base=str(models.base),
        models=[str(model) for model in models.finetuned],
        method=dict(method),
        scaling=scaling,
        output=str(output),
        statistics=statistics,
        overwrite=True,
        wait=30,
    )
    result = client.wait(job.id).result
    assert isinstance(result, MergeResult), "wait raises unless the job succeeded"
    return result


def methods(rule: str, norms: Sequence[float]) -> list[dict[str, Any]]:
    """The candidates of a rule's own parameters, given the norms of the task vectors.

    ``fedgma``: four equal models agree in sign by 0, ½ or 1, so only two values of ρ differ from task
    arithmetic. ``cclip``: five values from the smallest norm up to the largest, which is excluded.
    """
    if rule == "fedgma":
        return [{"name": rule, "rho": rho} for rho in (0.5, 1.0)]
    if rule == "cclip":
        low, high = min(norms), max(norms)
        return [{"name": rule, "rho": low + (high - low) * step / 5} for step in range(5)]
    return [{"name": rule}]


def scalings(rule: str, count: int) -> list[float]:
    """The candidates of λ for a merge of ``count`` models."""
    return [beta / count if SCALES[rule] == "sum" else beta for beta in SERVER_STEPS]


def select(
    client: Client,
    models: Models,
    candidates: Sequence[Mapping[str, Any]],
    scaling: Sequence[float],
    score: Callable[[Path], float],
    scratch: Path,
    on_candidate: Callable[[], object],
) -> Selected:
    """Merge every candidate into ``scratch`` and keep the best by ``score``; the first wins a tie."""
    tried = []
    for method in candidates:
        for value in scaling:
            merge(client, models, method, value, scratch)
            tried.append(Selected(dict(method), value, score(scratch)))
            on_candidate()
    return max(tried, key=lambda candidate: candidate.score)
