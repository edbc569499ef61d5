"""From the sums of a survey to the numbers of a diagnosis. No torch, no Ray."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from taumerge.schemas import DiagnoseResult, GroupDiagnosis, ModelDiagnosis
from workers.aggregation.heterogeneity import (
    average_norm,
    chi_square,
    cosines,
    effective_weights,
    mean_cosine,
    shares,
)
from workers.diagnostics.groups import layer_groups
from workers.merging.plan import MergePlan
from workers.merging.sums import Sums


def build_result(plan: MergePlan, sums: Sums, warnings: Sequence[str]) -> DiagnoseResult:
    """Everything that task vectors and training records tell; the verdict is still to come."""
    count = len(plan.models)
    weights = [one.weight for one in plan.contributions(range(count))]
    effective = effective_weights([one.lr_sum for one in plan.training])
    gram = sums.total_gram(count)
    parts = shares(gram, weights)
    norms = np.sqrt(np.diag(gram))
    return DiagnoseResult(
        models=[
            ModelDiagnosis(
                uri=model.uri,
                norm=float(norms[index]),
                weight=weights[index],
                effective_weight=effective[index] if effective else None,
                share=parts[index],
            )
            for index, model in enumerate(plan.request.models)
        ],
        cosine=cosines(gram),
        merged_norm=average_norm(gram, weights),
        agreement=_agreement(sums, list(sums.gram), count),
        chi_square=chi_square(weights, effective) if effective else None,
        groups=_groups(plan, sums, weights),
        verdict=[],
        seconds={},
        warnings=[*warnings, *_unchanged(plan, norms)],
    )


def _groups(plan: MergePlan, sums: Sums, weights: Sequence[float]) -> list[GroupDiagnosis]:
    count = len(plan.models)
    measured = sorted(sums.gram)
    names = plan.names
    found = []
    for name, places in layer_groups([names[tensor] for tensor in measured]).items():
        tensors = [measured[place] for place in places]
        gram = Sums(gram={tensor: sums.gram[tensor] for tensor in tensors}).total_gram(count)
        found.append(
            GroupDiagnosis(
                name=name,
                parameters=sum(plan.base.tensors[names[tensor]].info.elements for tensor in tensors),
                norms=np.sqrt(np.diag(gram)).tolist(),
                shares=shares(gram, weights),
                mean_cosine=mean_cosine(cosines(gram)),
                agreement=_agreement(sums, tensors, count),
            )
        )
    return found


def _agreement(sums: Sums, tensors: Sequence[int], count: int) -> list[float]:
    """Shares of the changed coordinates by |Σ_t sign τ_t|; all zero where nothing was changed."""
    counts: NDArray[np.int64] = sum(
        (sums.agreement[tensor] for tensor in tensors), start=np.zeros(count + 1, np.int64)
    )
    return [float(value) for value in counts / max(int(counts.sum()), 1)]


def _unchanged(plan: MergePlan, norms: NDArray[np.float64]) -> list[str]:
    """Models that are the base: they have no direction, so no cosines."""
    found = []
    for index in np.flatnonzero(norms == 0).tolist():
        trained = plan.training[index].steps
        contradicts = f", though {trained} steps of training are recorded" if trained else ""
        found.append(
            f"models.{index} is equal to the base{contradicts}; its task vector is zero and left out of the cosines"
        )
    return found
