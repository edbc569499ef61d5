"""The directory of a diagnosis: its numbers as JSON, pictures, and a report to read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from taumerge.errors import JobFailed
from taumerge.schemas import DiagnoseRequest, DiagnoseResult, OutputFile
from workers.checkpoints.checkpoint import CheckpointError, local_path
from workers.checkpoints.writing import Staging, sha256_of, sync
from workers.clock import Clock
from workers.diagnostics.preflight import DiagnosisPlan
from workers.merging import LEFT_TO_OTHERS

DIAGNOSIS = "diagnosis.json"


def staging_of(plan: DiagnosisPlan, output: Path, job_id: str) -> Staging:
    """Where the directory grows."""
    identity = f"{job_id} {plan.request.model_dump_json()} {plan.survey.inputs}"
    return Staging(output, hashlib.sha256(identity.encode()).hexdigest())


def place_output(
    plan: DiagnosisPlan, staging: Staging, result: DiagnoseResult, clock: Clock, job_id: str
) -> DiagnoseResult:
    """Write the directory, put it in its place, and return the result with its files.

    Raises:
        JobFailed: ``output_exists``, ``output_unwritable`` or ``disk_full``.
    """
    request = plan.request
    try:
        with clock.phase("report"):
            staging.create(())
            files = _write_report(request, result, staging.path)
            result = result.model_copy(update={"output": request.output, "files": files})
        record = _record(plan, result.model_copy(update={"seconds": clock.seconds}), job_id)
        staging.write_text(DIAGNOSIS, json.dumps(record, indent=2) + "\n")
        listed = _with_diagnosis(result, staging.path)
        staging.commit(request.overwrite)
    except LEFT_TO_OTHERS:
        raise
    except BaseException:
        staging.discard()
        raise
    return listed


def committed(request: DiagnoseRequest, job_id: str) -> DiagnoseResult | None:
    """The result of an attempt of this job that put its output in place and died before it could say so."""
    try:
        directory = local_path(request.output or "")
        record = json.loads((directory / DIAGNOSIS).read_bytes())
        if record["job"] != job_id:
            return None
        return _with_diagnosis(DiagnoseResult.model_validate(record["result"]), directory)
    except (CheckpointError, OSError, ValueError, KeyError, TypeError):  # no diagnosis of ours
        return None


def _write_report(request: DiagnoseRequest, result: DiagnoseResult, directory: Path) -> list[OutputFile]:
    from workers.diagnostics.report import write_report  # matplotlib takes a second to import

    try:
        names = write_report(directory, result, request)
    except OSError as error:
        raise JobFailed(
            "output_unwritable", f"the report cannot be written: {error.strerror}. Is the disk full?"
        ) from error
    return _described([directory / name for name in names])


def _described(paths: Sequence[Path]) -> list[OutputFile]:
    for path in paths:
        sync(path)
    return [OutputFile(name=path.name, bytes=path.stat().st_size, sha256=sha256_of(path)) for path in paths]


def _with_diagnosis(result: DiagnoseResult, directory: Path) -> DiagnoseResult:
    """The result with ``diagnosis.json`` among its files, which cannot list itself."""
    return result.model_copy(update={"files": [*result.files, *_described([directory / DIAGNOSIS])]})


def _record(plan: DiagnosisPlan, result: DiagnoseResult, job_id: str) -> dict[str, Any]:
    survey = plan.survey
    return {
        "format": 1,
        "job": job_id,
        "request": plan.request.model_dump(mode="json"),
        "result": result.model_dump(mode="json"),
        "training": [one.model_dump(exclude_none=True) for one in survey.training],
        "inputs": [
            {"uri": checkpoint.uri, "fingerprint": checkpoint.fingerprint}
            for checkpoint in (survey.base, *survey.models)
        ],
        "versions": {name: version(name) for name in ("taumerge", "torch", "ray", "numpy")},
    }
