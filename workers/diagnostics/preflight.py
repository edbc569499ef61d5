"""The preflight of a diagnosis: every check that headers and training records allow. No torch, no Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from taumerge.errors import ErrorItem, InvalidRequest
from taumerge.schemas import DiagnoseRequest, EvaluationSpec, MergeRequest
from workers.checkpoints.checkpoint import Checkpoint
from workers.diagnostics.records import contradictions, missing_records, read_records
from workers.evaluation import check_evaluation
from workers.merging.plan import MergePlan
from workers.merging.preflight import output_path, plan_merge


@dataclass(frozen=True)
class DiagnosisPlan:
    """A diagnosis that can be carried out."""

    request: DiagnoseRequest
    survey: MergePlan
    """The merge V = Σ p_t τ_t, of which only the measuring is done."""
    output: Path | None
    warnings: tuple[str, ...]


def check_diagnose(
    request: DiagnoseRequest, *, workers: int = 1, worker_memory: int = 0, code_allowed: bool = False
) -> DiagnosisPlan:
    """Check ``request`` against the checkpoints and records that it names, and plan it.

    Args:
        code_allowed: whether an evaluation may run code that models write.

    Raises:
        InvalidRequest: with every problem found, each located in the request.
    """
    errors = _coefficients(request) + _tasks(request)
    survey = None
    try:
        survey = plan_merge(_average(request), workers=workers, worker_memory=worker_memory, writes=False)
    except InvalidRequest as error:
        errors += error.errors
    inputs: tuple[Checkpoint, ...] = (survey.base, *survey.models) if survey else ()
    output = output_path(request.output, request.overwrite, inputs, errors) if request.output else None
    records = read_records(request.models, survey.models, errors) if survey else []
    if survey and request.evaluation:
        errors += _gradients(request.evaluation)
        errors += check_evaluation(survey.base, request.evaluation, code_allowed=code_allowed)
    if errors or survey is None:
        raise InvalidRequest(errors)
    warnings = (
        *survey.warnings,
        *contradictions(survey.base, request.models, survey.models, records),
        *missing_records(survey.training),
    )
    return DiagnosisPlan(request, survey, output, warnings)


def _average(request: DiagnoseRequest) -> MergeRequest:
    """The merge that a diagnosis looks at: V = Σ p_t τ_t. It is not written, so its output is any place."""
    models = [model.model_copy(update={"coefficient": None}) for model in request.models]
    return MergeRequest.model_validate(
        {
            "base": request.base,
            "models": models,
            "method": {"name": "task_arithmetic", "scale": "mean"},
            "output": request.output or request.base,
            "keys": request.keys,
        }
    )


def _coefficients(request: DiagnoseRequest) -> list[ErrorItem]:
    message = "a diagnosis takes weights, not coefficients; leave it out"
    return [
        ErrorItem(loc=("models", index, "coefficient"), code="coefficients_not_allowed", msg=message)
        for index, model in enumerate(request.models)
        if model.coefficient is not None
    ]


def _gradients(spec: EvaluationSpec) -> list[ErrorItem]:
    if spec.kind != "lm_eval":
        return []
    message = "scores of lm-evaluation-harness have no gradients; leave evaluation out"
    return [ErrorItem(loc=("evaluation", "kind"), code="no_gradients", msg=message)]


def _tasks(request: DiagnoseRequest) -> list[ErrorItem]:
    """Task number t belongs to model number t, so there are as many tasks as models."""
    if request.evaluation is None:
        return []
    tasks, models = list(request.evaluation.tasks), request.models
    return [
        ErrorItem(
            loc=("evaluation", "tasks", task),
            code="task_without_model",
            msg=f"task number {index} belongs to model number {index}, and there are {len(models)} models",
        )
        for index, task in enumerate(tasks)
        if index >= len(models)
    ] + [
        ErrorItem(
            loc=("models", index),
            code="model_without_task",
            msg=f"there are {len(tasks)} tasks; give evaluation.tasks one for each model, in their order",
        )
        for index in range(len(tasks), len(models))
    ]
