"""A fine-tune from request to result: check, train on Ray, and put the checkpoint in its place."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from taumerge.errors import JobFailed
from taumerge.schemas import FinetuneRequest, FinetuneResult, TrialResult
from workers.checkpoints.checkpoint import CheckpointError, local_path
from workers.checkpoints.writing import Staging
from workers.finetuning.actor import Report, train_on_actor
from workers.finetuning.preflight import check_finetune, warnings
from workers.finetuning.record import completed
from workers.merging import LEFT_TO_OTHERS, unnoted
from workers.settings import WorkerSettings


def run_finetune(
    request: FinetuneRequest,
    settings: WorkerSettings,
    report: Report,
    *,
    job_id: str = "",
    staged: Callable[[Staging], None] = unnoted,
) -> FinetuneResult:
    """Carry out ``request`` on the Ray cluster that this process is connected to.

    The output appears whole or not at all; with a grid that holds for the directory of each trial. A crash or
    Ctrl-C leaves a hidden directory with the last checkpoint, from which the same request (and ``job_id``) goes on.

    Args:
        report: told about the progress a few times a second; what it raises stops the training.
        job_id: an output that an earlier attempt of this job has put in place is taken as its result.
        staged: told about each hidden directory before it is made.

    Raises:
        InvalidRequest: it cannot be carried out.
        JobFailed: it was begun and failed. ``training_diverged`` keeps the hidden directory, and names it.
    """
    begun = time.monotonic()

    def stage(trial: FinetuneRequest, path: Path) -> Staging:
        staging = staging_of(trial, path, job_id)
        staged(staging)
        return staging

    trained = _committed(request) if job_id else ()
    if not trained:
        output = check_finetune(request)
        if request.grid is None:
            trained = [_run_alone(request, stage(request, output), settings, report)]
        else:
            from workers.finetuning.grid import run_grid  # Tune takes seconds to import

            trained = run_grid(request, output, settings, report, stage)
    return FinetuneResult(
        output=request.output,
        trials=list(trained),
        seconds={"finetune": round(time.monotonic() - begun, 3)},
        warnings=warnings(request),
    )


def staging_of(request: FinetuneRequest, output: Path, job_id: str) -> Staging:
    """Where a trial grows; attempts of one job at one request share it."""
    identity = f"{job_id} {request.model_dump_json()}"
    return Staging(output, hashlib.sha256(identity.encode()).hexdigest())


def _committed(request: FinetuneRequest) -> Sequence[TrialResult]:
    """What an attempt put in place that died before it could say so. A grid looks for that trial by trial."""
    if request.grid is not None:
        return ()
    try:
        result = completed(request, local_path(request.output))
    except CheckpointError:
        return ()
    return () if result is None else (result,)


def _run_alone(
    request: FinetuneRequest, staging: Staging, settings: WorkerSettings, report: Report
) -> TrialResult:
    staging.create(())
    try:
        result = train_on_actor(request, staging.path, settings, report)
        staging.commit(overwrite=False)
        return result
    except (*LEFT_TO_OTHERS, KeyboardInterrupt):
        raise
    except BaseException as error:
        if not (isinstance(error, JobFailed) and "checkpoint" in error.details):
            staging.discard()
        raise
