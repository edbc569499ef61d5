"""A diagnosis from request to result: one pass over the shards, gradients where there is data, words, a report."""

from __future__ import annotations

from collections.abc import Callable

from taumerge.schemas import DiagnoseRequest, DiagnoseResult
from workers.checkpoints.writing import Staging
from workers.clock import Clock
from workers.diagnostics.gradient_actor import measure_gradients
from workers.diagnostics.measure import build_result
from workers.diagnostics.output import committed, place_output, staging_of
from workers.diagnostics.preflight import DiagnosisPlan, check_diagnose
from workers.diagnostics.verdict import verdict
from workers.merging.dispatch import Report, ask_of_units
from workers.merging.mix import nonfinite_failure
from workers.merging.pool import shard_actors, worker_count
from workers.merging.run import Actors, check_unchanged, unnoted
from workers.merging.sums import Sums
from workers.settings import WorkerSettings


def run_diagnose(
    request: DiagnoseRequest,
    settings: WorkerSettings,
    report: Report,
    *,
    job_id: str = "",
    detached: bool = False,
    staged: Callable[[Staging], None] = unnoted,
) -> DiagnoseResult:
    """Carry out ``request`` on the Ray cluster that this process is connected to.

    The output, where one is asked for, appears whole or not at all.

    Args:
        report: told about the progress a few times a second; what it raises stops the diagnosis.
        job_id: an output that an earlier attempt of this job has put in place is taken as its result.
        detached: use shard workers that outlive this process, and leave them running.
        staged: told about the hidden directory before it is made.

    Raises:
        InvalidRequest: it cannot be carried out (any more).
        JobFailed: it was begun and failed.
    """
    if job_id and (earlier := committed(request, job_id)):
        return earlier
    clock = Clock()
    with clock.phase("plan"):
        plan = check_diagnose(
            request,
            workers=worker_count(settings),
            worker_memory=int(settings.worker_memory),
            code_allowed=settings.allow_code_execution,
        )
        actors = shard_actors(settings, detached=detached)
    with clock.phase("survey"):
        sums = _survey(plan, actors, report)
    result = build_result(plan.survey, sums, plan.warnings)
    if request.evaluation and (tensors := _changed(plan, sums)):
        with clock.phase("gradients"):
            result.gradients = measure_gradients(plan, request.evaluation, tensors, settings, actors, report)
    result.verdict = verdict(result)
    result.seconds = clock.seconds
    if plan.output is None:
        return result
    staging = staging_of(plan, plan.output, job_id)
    staged(staging)
    return place_output(plan, staging, result, clock, job_id)


def _survey(plan: DiagnosisPlan, actors: Actors, report: Report) -> Sums:
    """Gram matrix and sign agreement of every tensor."""
    merge = plan.survey
    inputs = merge.inputs
    findings = ask_of_units(
        "survey", merge.units(), actors, report, lambda actor, unit: actor.survey.remote(unit, inputs)
    )
    sums = Sums.of(findings)
    if sums.nonfinite:
        raise nonfinite_failure(merge, sums, range(len(merge.models)), droppable=False)
    check_unchanged(merge)
    return sums


def _changed(plan: DiagnosisPlan, sums: Sums) -> list[str]:
    """The tensors that some model changed; the others are no part of what was trained."""
    names = plan.survey.names
    return [names[tensor] for tensor in sorted(sums.gram) if sums.gram[tensor].trace() > 0]
