"""The HTTP routes. They validate, queue and report; what runs a job is elsewhere."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, FastAPI, Header, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, BeforeValidator
from pydantic.json_schema import models_json_schema
from pydantic_core import to_json

from service import events, metrics, policy, problems
from service.gate import BearerToken, BodyLimit, LoopbackHost
from service.problems import documented, problem
from service.settings import Settings
from service.store import Store
from taumerge.errors import InvalidRequest
from taumerge.schemas import (
    DiagnoseRequest,
    FinetuneRequest,
    Job,
    JobKind,
    JobPage,
    JobState,
    MergeRequest,
    MethodInfo,
    Plan,
    Problem,
    SearchRequest,
)
from workers.aggregation import describe_rules
from workers.diagnostics import check_diagnose
from workers.finetuning import check_finetune
from workers.merging.plan import MergePlan
from workers.search import check_search

__all__ = ["create_app"]

MAX_WAIT_SECONDS = 60
PREFLIGHTS = 8
"""Preflights that run at once: the threads that answer everything else are never all taken by slow disks."""
_SHORTEST_POLL, _LONGEST_POLL = 0.005, 0.1
_WAIT = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=$|[,;])', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Service:
    """What the routes work with."""

    settings: Settings
    store: Store
    plan: Callable[[MergeRequest], MergePlan]
    wake: Callable[[JobKind], None]
    preflights: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(PREFLIGHTS))


def create_app(
    settings: Settings,
    store: Store,
    *,
    plan: Callable[[MergeRequest], MergePlan],
    wake: Callable[[JobKind], None],
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        plan: the preflight of a merge; blocking; raises InvalidRequest for what cannot be carried out.
        wake: tells the runner that a job was queued; must not block.
    """
    app = _Application(
        title="taumerge", version=version("taumerge-server"), summary="Merges fine-tuned checkpoints."
    )
    app.state.service = _Service(settings, store, plan, wake)
    app.include_router(router)
    problems.install(app)
    app.add_middleware(BodyLimit)
    if settings.token is not None:
        app.add_middleware(BearerToken, token=settings.token.get_secret_value())
    else:
        app.add_middleware(LoopbackHost)
    return app


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            _, problem_schema = models_json_schema(
                [(Problem, "serialization")], ref_template="#/components/schemas/{model}"
            )
            super().openapi()["components"]["schemas"].update(problem_schema["$defs"])
        return super().openapi()


def _service(request: Request) -> _Service:
    service: _Service = request.app.state.service
    return service


ServiceOf = Annotated[_Service, Depends(_service)]
router = APIRouter()


def _json(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(model.model_dump_json(), status, headers, "application/json")


# ----------------------------------------------------------------------------------------- queueing


_QUEUED: dict[int | str, dict[str, Any]] = {
    200: {"model": Job, "description": "The job that ended in time"},
    202: {"model": Job, "description": "The queued job"},
    **documented(401, 403, 409, 413, 422, 429, 503),
}
_PLANNED: dict[int | str, dict[str, Any]] = {
    200: {"model": Job | Plan, "description": "The plan of a dry run, or the job that ended in time"}
}


def _prefer(
    request: Request,
    prefer: Annotated[str | None, Header(description="`wait=N`: seconds, at most 60")] = None,
) -> str:
    return ",".join(request.headers.getlist("prefer"))  # the parameter, for OpenAPI, is one of its lines only


Answer = TypeVar("Answer")
Prefer = Annotated[str, Depends(_prefer)]
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


@router.post("/merge", responses=_QUEUED | _PLANNED)
async def merge(
    merge: MergeRequest,
    service: ServiceOf,
    prefer: Prefer,
    dry_run: bool = False,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Queue a merge, or with `dry_run` say what it would do."""

    def check() -> MergePlan:
        policy.check_merge(merge, service.settings)
        return service.plan(merge)

    if dry_run:
        return _json(await _preflight(service, lambda: check().describe()))
    return await _queue(service, "merge", merge, check, prefer, idempotency_key)


@router.post("/search", responses=_QUEUED)
async def search(
    search: SearchRequest, service: ServiceOf, prefer: Prefer, idempotency_key: IdempotencyKey = None
) -> Response:
    """Queue a search for the best rule, its parameters and λ."""

    def check() -> None:
        policy.check_search(search, service.settings)
        check_search(search, code_allowed=service.settings.allow_code_execution)

    return await _queue(service, "search", search, check, prefer, idempotency_key)


@router.post("/finetune", responses=_QUEUED)
async def finetune(
    finetune: FinetuneRequest, service: ServiceOf, prefer: Prefer, idempotency_key: IdempotencyKey = None
) -> Response:
    """Queue a fine-tune, or a grid of them."""

    def check() -> None:
        policy.check_finetune(finetune, service.settings)
        check_finetune(finetune)

    return await _queue(service, "finetune", finetune, check, prefer, idempotency_key)


@router.post("/diagnose", responses=_QUEUED)
async def diagnose(
    diagnose: DiagnoseRequest, service: ServiceOf, prefer: Prefer, idempotency_key: IdempotencyKey = None
) -> Response:
    """Queue a diagnosis of heterogeneity."""

    def check() -> None:
        policy.check_diagnose(diagnose, service.settings)
        check_diagnose(diagnose, code_allowed=service.settings.allow_code_execution)

    return await _queue(service, "diagnose", diagnose, check, prefer, idempotency_key)


async def _queue(
    service: _Service,
    kind: JobKind,
    request: BaseModel,
    check: Callable[[], object],
    prefer: str,
    idempotency_key: str | None,
) -> Response:
    """Queue a request that passes ``check``, or answer with the job of the same idempotency key."""
    try:
        body = request.model_dump(mode="json")
        to_json({"jobs": [{"request": body}]})  # it will be answered within a page of jobs
    except ValueError:  # of a free-form parameter, what pydantic reads and does not write
        message = "it is nested too deep, or has text that is no Unicode"
        raise InvalidRequest.at([], "json_invalid", message) from None
    job = None
    if idempotency_key is not None:
        # Before the check: a job that has succeeded would refuse its own output.
        job = await run_in_threadpool(service.store.find_by_key, idempotency_key, kind, body)
    if job is None:
        # Before the check, which costs more; ``create`` counts again.
        await run_in_threadpool(service.store.check_queue, service.settings.max_queued_jobs)
        await _preflight(service, check)
        job = await run_in_threadpool(
            service.store.create, kind, body, idempotency_key, max_queued=service.settings.max_queued_jobs
        )
        service.wake(kind)
    return await _answer(service.store, job, prefer)


async def _preflight(service: _Service, check: Callable[[], Answer]) -> Answer:
    """``check``, in one of the threads that preflights have."""
    return await to_thread.run_sync(check, limiter=service.preflights)


async def _answer(store: Store, job: Job, prefer: str) -> Response:
    """The job: 200 if it has ended, within the preferred wait where there is one, else 202."""
    headers = {"Location": f"/jobs/{job.id}"}
    if wait := _WAIT.search(prefer):
        seconds = min(int(wait[1]), MAX_WAIT_SECONDS)
        headers["Preference-Applied"] = f"wait={seconds}"
        job = await _until_ended(store, job, seconds)
    return _json(job, 200 if job.ended else 202, headers)


async def _until_ended(store: Store, job: Job, seconds: float) -> Job:
    deadline = time.monotonic() + seconds
    pause = _SHORTEST_POLL
    while not job.ended and (left := deadline - time.monotonic()) > 0:
        await asyncio.sleep(min(pause, left))
        pause = min(pause * 1.3, _LONGEST_POLL)
        job = await run_in_threadpool(store.get, job.id)
    return job


# --------------------------------------------------------------------------------------------- jobs


_NO_NUL = r"^[^\x00]*$"  # which no text in PostgreSQL holds
JobId = Annotated[str, Path(pattern=_NO_NUL)]
LastEventId = Annotated[
    int, BeforeValidator(lambda value: value or 0), Header(ge=0, le=2**63 - 1)
]  # an empty one is none


@router.get("/jobs", responses=documented(401, 403, 422, 503))
def jobs(
    service: ServiceOf,
    kind: JobKind | None = None,
    state: JobState | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(pattern=_NO_NUL)] = None,
) -> JobPage:
    """Jobs, newest first."""
    page, next_cursor = service.store.list(kind=kind, state=state, limit=limit, cursor=cursor)
    return JobPage(jobs=list(page), next_cursor=next_cursor)


@router.get("/jobs/{job_id}", responses=documented(401, 403, 404, 422, 503))
def job(job_id: JobId, service: ServiceOf) -> Job:
    """One job."""
    return service.store.get(job_id)


@router.get(
    "/jobs/{job_id}/events",
    response_class=EventSourceResponse,
    responses=documented(401, 403, 404, 422, 503),
)
async def job_events(
    job: Annotated[Job, Depends(job)],
    service: ServiceOf,
    last_event_id: LastEventId = 0,
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: `progress` (Progress), `state` ({"state": …}) and `log` ({"message": …}).

    The stream ends after the final state, or after about a minute; `Last-Event-ID` resumes it.
    """
    stream = events.follow(service.store, job.id, last_event_id, service.settings.events_seconds)
    async for event in stream:
        yield event


@router.post(
    "/jobs/{job_id}/cancel",
    status_code=202,
    responses=documented(401, 403, 404, 409, 422, 503),
)
def cancel(job_id: JobId, service: ServiceOf) -> Job:
    """Ask for cancellation: a queued job ends at once, a running one within seconds."""
    return service.store.request_cancel(job_id)


# --------------------------------------------------------------------------------------- operations


@router.get("/methods", responses=documented(401, 403))
def methods() -> list[MethodInfo]:
    """Every rule, with its parameters as JSON Schema."""
    return describe_rules()


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses=documented(503))
def readyz(service: ServiceOf) -> Response:
    """Whether jobs are accepted and run: the database answers, and a runner is there."""
    seen = service.store.runner_seen_at()
    if seen is None or (datetime.now(UTC) - seen).total_seconds() > service.settings.lease_seconds:
        return problem(
            503, "runner_unavailable", "no runner is there to run jobs", headers={"Retry-After": "1"}
        )
    return Response('{"status":"ready"}', media_type="application/json")


@router.get("/metrics", response_class=PlainTextResponse, responses=documented(401, 403, 503))
def read_metrics(service: ServiceOf) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(metrics.exposition(service.store), media_type=CONTENT_TYPE_LATEST)
