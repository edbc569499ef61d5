"""Diagnoses of heterogeneity: the request and the result."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from taumerge.schemas._parts import MAX_MODELS, AnswerPart, Number, OutputFile, RequestPart
from taumerge.schemas.merge import AnyModelRef
from taumerge.schemas.search import EvaluationSpec


class DiagnoseRequest(RequestPart):
    """Measure how different the ``models`` of one ``base`` are, and how differently they were trained."""

    base: str = Field(min_length=1)
    """URI of the base model θ₀."""
    models: list[AnyModelRef] = Field(min_length=1, max_length=MAX_MODELS)
    """As in a merge, with weights p_t."""
    evaluation: EvaluationSpec | None = None
    """Validation data for ζ*² and the gradient diversity; task number t belongs to model number t."""
    keys: Literal["strict", "intersection"] = "strict"
    """As in a merge."""
    output: str | None = Field(default=None, min_length=1)
    """URI of the directory to create for ``diagnosis.json``, pictures and ``report.html``; null: none."""
    overwrite: bool = False
    """As in a merge."""


# ----------------------------------------------------------------------------------------- answers


class ModelDiagnosis(AnswerPart):
    """One model among the others."""

    uri: str
    norm: Number
    """‖τ_t‖₂."""
    weight: Number
    """p_t, normalised."""
    effective_weight: float | None = None
    """w_t = A_t / Σ_s A_s; null unless every training record has the sum of learning rates."""
    share: float | None = None
    """Part of this model in ‖V‖₂², V = Σ p_t τ_t: p_t⟨τ_t, V⟩ / ‖V‖₂². The shares sum to 1."""


class GroupDiagnosis(AnswerPart):
    """A group of layers."""

    name: str
    """What the names of its tensors begin with."""
    parameters: int
    norms: list[Number]
    """‖τ_t‖₂ over the group, by model."""
    shares: list[float | None]
    """As ``ModelDiagnosis.share``, within the group."""
    mean_cosine: float | None
    """Mean over all pairs of models that differ from the base here."""
    agreement: list[Number]
    """As ``DiagnoseResult.agreement``."""


class GradientDiagnosis(AnswerPart):
    """Heterogeneity of the data, from gradients at the merged model θ* = θ₀ + V_mean."""

    zeta_square: Number
    """ζ*² = (1/T) Σ_t ‖∇L_t(θ*)‖₂²."""
    diversity: float | None
    """Σ_t ‖∇L_t‖₂² / ‖Σ_t ∇L_t‖₂²: 1/T when all agree, 1 when orthogonal."""
    norms: list[Number]
    """‖∇L_t(θ*)‖₂ by task."""


class DiagnoseResult(AnswerPart):
    """What was measured, and a heuristic verdict."""

    models: list[ModelDiagnosis]
    cosine: list[list[float | None]]
    """T×T; null where a task vector is zero."""
    merged_norm: Number
    """‖V‖₂ of V = Σ p_t τ_t."""
    agreement: list[Number]
    """Share of the coordinates with |Σ_t sign τ_t| = 0, 1, …, T, among those that any model changed."""
    chi_square: float | None = None
    """χ²(p‖w) = Σ_t (p_t − w_t)² / w_t; null where w_t is."""
    groups: list[GroupDiagnosis]
    gradients: GradientDiagnosis | None = None
    verdict: list[str]
    """What stands out, and which rule that speaks for, with the reason; a heuristic."""
    output: str | None = None
    files: list[OutputFile] = Field(default_factory=list)
    seconds: dict[str, float]
    warnings: list[str] = Field(default_factory=list)
