"""The result of a merge, and the receipt that lies beside the merged weights."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taumerge.schemas import MergeResult, ModelReport, OutputFile, TensorCounts
from workers.aggregation.heterogeneity import chi_square, cosines, effective_weights, shares
from workers.checkpoints.checkpoint import Checkpoint
from workers.checkpoints.dtypes import FLOATS
from workers.merging.mix import Mix
from workers.merging.plan import MergePlan
from workers.merging.sums import Sums


def build_result(
    plan: MergePlan, mix: Mix, sums: Sums, digests: Mapping[str, str], seconds: Mapping[str, float]
) -> MergeResult:
    """Everything that the contract promises of a merge."""
    request = plan.request
    gram = sums.total_gram(len(mix.models))
    norms = np.sqrt(np.diag(gram))
    shown = request.statistics != "none"
    merged = len(plan.comparison.merged) - len(mix.copied)
    return MergeResult(
        output=request.output,
        files=[OutputFile(name=file.name, bytes=file.size, sha256=digests[file.name]) for file in plan.files],
        tensors=TensorCounts(
            merged=merged,
            copied=len(plan.names) - merged,
            dropped=sum(len(dropped) for dropped in plan.comparison.dropped),
        ),
        models=_model_reports(plan, mix, norms if shown else None),
        cosine=_cosines(gram, mix, len(request.models)) if request.statistics == "full" else None,
        merged_norm=sums.merged_norm() if shown else None,
        scaling=request.scaling,
        seconds=dict(seconds),
        bytes_read=mix.measured.bytes_read + sums.bytes_read,
        bytes_written=sum(file.size for file in plan.files),
        warnings=[*plan.warnings, *_measured_warnings(mix, norms), *_drop_warnings(mix)],
    )


def build_receipt(plan: MergePlan, mix: Mix, result: MergeResult, sums: Sums, job_id: str) -> dict[str, Any]:
    """The contents of ``taumerge.json``: what was done to which bytes by which versions."""
    names = plan.names
    merged = set(plan.comparison.merged) - mix.copied
    tensors = plan.base.tensors
    return {
        "format": 1,
        "job": job_id,
        "request": plan.request.model_dump(mode="json"),
        "method": {"name": plan.rule.name, **plan.rule.model_dump(mode="json")},
        "result": result.model_dump(mode="json"),
        "inputs": {
            "base": _fingerprint(plan.base),
            "models": [_fingerprint(model) for model in plan.models],
        },
        "tensors": {
            "copied": [name for name in names if name not in merged],
            "nonfloat_differing": sorted(
                {names[tensor] for tensor in sums.differing}
                | {name for name in names if tensors[name].info.dtype not in FLOATS and _reshaped(plan, name)}
            ),
            "dropped": [list(dropped) for dropped in plan.comparison.dropped],
        },
        "training": [one.model_dump(exclude_none=True) for one in plan.training],
        "heterogeneity": _heterogeneity(plan, result, sums),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("taumerge", "torch", "ray", "numpy")},
        },
    }


def _heterogeneity(plan: MergePlan, result: MergeResult, sums: Sums) -> dict[str, Any]:
    """w_t, χ²(p‖w) and the shares of the models that took part, as far as this merge knows them; else null.

    As in a diagnosis: of V = Σ p_t τ_t, whatever the rule made of the task vectors.
    """
    models = [index for index, model in enumerate(result.models) if not model.dropped]
    weights = [one.weight for one in plan.contributions(models)]
    effective = effective_weights([plan.training[index].lr_sum for index in models])
    by_coefficient = any(model.coefficient is not None for model in plan.request.models)
    measured = plan.request.statistics == "full" and not by_coefficient
    return {
        "models": models,
        "effective_weights": effective,
        "chi_square": chi_square(weights, effective) if effective and not by_coefficient else None,
        "shares": shares(sums.total_gram(len(models)), weights) if measured else None,
    }


def _model_reports(plan: MergePlan, mix: Mix, norms: NDArray[np.float64] | None) -> list[ModelReport]:
    request = plan.request
    reports = [
        ModelReport(
            uri=model.uri,
            nonfinite=sum(count for (place, _), count in mix.measured.nonfinite.items() if place == index),
            dropped=index not in mix.models,
        )
        for index, model in enumerate(request.models)
    ]
    contributions = plan.contributions(mix.models)
    factor = plan.rule.factor(len(mix.models))
    for place, (index, contribution) in enumerate(zip(mix.models, contributions, strict=True)):
        report = reports[index]
        if norms is not None:
            report.norm = float(norms[place])
        if contribution.coefficient is None:
            report.weight = contribution.weight
        if mix.coefficients and plan.rule.linear:
            report.coefficient = request.scaling * mix.coefficients[place]
            if plan.rule.clips and contribution.weight:
                report.clipped_by = mix.coefficients[place] / (factor * contribution.weight)
    return reports


def _cosines(gram: NDArray[np.float64], mix: Mix, count: int) -> list[list[float | None]]:
    """T×T; null where a task vector is zero or its model was dropped."""
    matrix: list[list[float | None]] = [[None] * count for _ in range(count)]
    for first, row in zip(mix.models, cosines(gram), strict=True):
        for second, cosine in zip(mix.models, row, strict=True):
            matrix[first][second] = cosine
    return matrix


def _measured_warnings(mix: Mix, norms: NDArray[np.float64]) -> list[str]:
    warnings = []
    first_with_norm: dict[float, int] = {}
    for index, norm in zip(mix.models, norms.tolist(), strict=True):
        if norm == 0:
            warnings.append(f"models.{index} is equal to the base; its task vector is zero")
        elif norm in first_with_norm:
            warnings.append(f"models.{index} seems to be the same model as models.{first_with_norm[norm]}")
        first_with_norm.setdefault(norm, index)
    return warnings


def _drop_warnings(mix: Mix) -> list[str]:
    dropped = sorted({model for model, _ in mix.measured.nonfinite} - set(mix.models))
    warnings = [f"models.{model} has NaN or inf and was left out" for model in dropped]
    if mix.copied:
        first = min(mix.copied)
        warnings.append(
            f"{len(mix.copied)} tensors have NaN or inf in a model and come from the base, {first} first"
        )
    return warnings


def _fingerprint(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "uri": checkpoint.uri,
        "files": [
            {
                "name": file.name,
                "bytes": file.state.size,
                "mtime_ns": file.state.mtime_ns,
                "ctime_ns": file.state.ctime_ns,
                "header_sha256": file.header_sha256,
            }
            | ({"version": file.state.version} if file.state.version else {})
            for file in checkpoint.files
        ],
    }


def _reshaped(plan: MergePlan, name: str) -> bool:
    """Whether some model has the tensor in another shape or type than the base."""
    base = plan.base.tensors[name].info
    others = [model.find(name) for model in plan.models]
    return any(other and (other.info.shape, other.info.dtype) != (base.shape, base.dtype) for other in others)
