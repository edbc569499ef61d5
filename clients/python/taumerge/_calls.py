"""Every call of the service, described once for both clients."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypedDict, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from taumerge._transport import Call
from taumerge.errors import InvalidRequest
from taumerge.schemas import (
    AdapterSpec,
    Budget,
    DiagnoseRequest,
    EvaluationSpec,
    FinetuneRequest,
    FinetuneTask,
    Grid,
    Job,
    JobPage,
    MergeRequest,
    MethodInfo,
    MethodSpec,
    ModelRef,
    Plan,
    Resources,
    ScalingRange,
    SearchRequest,
    TaskModel,
    TrainSpec,
)

LONGEST_WAIT_SECONDS = 60
"""The service holds an answer no longer than this."""
LONGEST_KEY = 255
PAGE_SIZE = 100

EVENT_STREAM_SECONDS = 60
"""About how long the service keeps one connection of an event stream, perhaps in silence."""

T = TypeVar("T")


def _json(adapter: TypeAdapter[T]) -> Callable[[httpx.Response], T]:
    return lambda answer: adapter.validate_json(answer.content)


_health = _json(TypeAdapter(dict[str, Any]))
_job = _json(TypeAdapter(Job))
_job_page = _json(TypeAdapter(JobPage))
_methods = _json(TypeAdapter(list[MethodInfo]))
_plan = _json(TypeAdapter(Plan))


def _event_stream(answer: httpx.Response) -> httpx.Response:
    if not answer.headers.get("Content-Type", "").startswith("text/event-stream"):
        raise ValueError("not an event stream")
    return answer


class MergeFields(TypedDict, total=False):
    """The fields of a MergeRequest, as keyword arguments; its defaults hold for what is left out."""

    base: str
    models: Sequence[str | Mapping[str, Any] | ModelRef]
    method: str | Mapping[str, Any] | MethodSpec
    scaling: float
    output: str
    dtype: str | None
    max_shard_size: str
    nonfinite: str
    statistics: str
    keys: str
    overwrite: bool


class FinetuneFields(TypedDict, total=False):
    """The fields of a FinetuneRequest, as keyword arguments; its defaults hold for what is left out."""

    base: str
    task: Mapping[str, Any] | FinetuneTask
    train: Mapping[str, Any] | TrainSpec
    adapter: Mapping[str, Any] | AdapterSpec | None
    grid: str | Mapping[str, Any] | Grid | None
    resources: Mapping[str, Any] | Resources
    output: str


class SearchFields(TypedDict, total=False):
    """The fields of a SearchRequest, as keyword arguments; its defaults hold for what is left out."""

    base: str
    models: Sequence[Mapping[str, Any] | TaskModel]
    methods: str | Sequence[str | Mapping[str, Any] | MethodSpec]
    scaling: Sequence[float] | Mapping[str, float] | ScalingRange
    evaluation: Mapping[str, Any] | EvaluationSpec
    algorithm: str
    patience: int | None
    budget: Mapping[str, Any] | Budget
    seed: int
    output: str
    keys: str
    overwrite: bool


class DiagnoseFields(TypedDict, total=False):
    """The fields of a DiagnoseRequest, as keyword arguments; its defaults hold for what is left out."""

    base: str
    models: Sequence[str | Mapping[str, Any] | ModelRef]
    evaluation: Mapping[str, Any] | EvaluationSpec | None
    keys: str
    output: str | None
    overwrite: bool


def merge(
    request: MergeRequest | Mapping[str, Any] | None,
    fields: MergeFields,
    *,
    wait: float | None,
    idempotency_key: str | None,
) -> Call[Job]:
    return _queueing("/merge", _body(MergeRequest, request, fields), wait, idempotency_key)


def finetune(
    request: FinetuneRequest | Mapping[str, Any] | None,
    fields: FinetuneFields,
    *,
    wait: float | None,
    idempotency_key: str | None,
) -> Call[Job]:
    return _queueing("/finetune", _body(FinetuneRequest, request, fields), wait, idempotency_key)


def search(
    request: SearchRequest | Mapping[str, Any] | None,
    fields: SearchFields,
    *,
    wait: float | None,
    idempotency_key: str | None,
) -> Call[Job]:
    return _queueing("/search", _body(SearchRequest, request, fields), wait, idempotency_key)


def diagnose(
    request: DiagnoseRequest | Mapping[str, Any] | None,
    fields: DiagnoseFields,
    *,
    wait: float | None,
    idempotency_key: str | None,
) -> Call[Job]:
    return _queueing("/diagnose", _body(DiagnoseRequest, request, fields), wait, idempotency_key)


def plan(request: MergeRequest | Mapping[str, Any] | None, fields: MergeFields) -> Call[Plan]:
    return Call(
        "POST", "/merge", _plan, params={"dry_run": "true"}, content=_body(MergeRequest, request, fields)
    )


def job(job_id: str) -> Call[Job]:
    return Call("GET", _job_path(job_id), _job)


def cancel(job_id: str) -> Call[Job]:
    return Call("POST", f"{_job_path(job_id)}/cancel", _job)


def events(job_id: str, last_event_id: str) -> Call[httpx.Response]:
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_event_id} if last_event_id else {})
    path = f"{_job_path(job_id)}/events"
    return Call("GET", path, _event_stream, headers=headers, stream=True, held_seconds=EVENT_STREAM_SECONDS)


def methods() -> Call[list[MethodInfo]]:
    return Call("GET", "/methods", _methods)


def health() -> Call[dict[str, Any]]:
    return Call("GET", "/healthz", _health)


class JobListing:
    """The calls that list jobs page by page, newest first."""

    def __init__(self, kind: str | None, state: str | None, limit: int | None) -> None:
        self._params = {name: value for name, value in (("kind", kind), ("state", state)) if value}
        self._left = math.inf if limit is None else limit
        self._cursor: str | None = ""

    def next_call(self) -> Call[JobPage] | None:
        """The call for the next page; None after the last."""
        if self._cursor is None or self._left <= 0:
            return None
        params = self._params | {"limit": str(min(self._left, PAGE_SIZE))}
        if self._cursor:
            params["cursor"] = self._cursor
        return Call("GET", "/jobs", _job_page, params=params)

    def jobs(self, page: JobPage) -> Iterator[Job]:
        """The wanted jobs of the page that was called for."""
        self._cursor = page.next_cursor
        for job in page.jobs:
            if self._left <= 0:
                return
            self._left -= 1
            yield job


def _job_path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"


def _queueing(path: str, body: str, wait: float | None, idempotency_key: str | None) -> Call[Job]:
    key = idempotency_key or str(uuid.uuid4())
    if not (key.isascii() and key.isprintable() and len(key) <= LONGEST_KEY):
        message = f"an idempotency key has only printable ASCII characters, {LONGEST_KEY} at most"
        raise InvalidRequest.at(("idempotency_key",), "invalid_idempotency_key", message)
    headers = {"Idempotency-Key": key}
    held = min(math.ceil(wait), LONGEST_WAIT_SECONDS) if wait else 0
    if held > 0:
        headers["Prefer"] = f"wait={held}"
    return Call("POST", path, _job, headers=headers, content=body, held_seconds=held)


def _body(
    schema: type[BaseModel],
    request: BaseModel | Mapping[str, Any] | None,
    fields: MergeFields | SearchFields | FinetuneFields | DiagnoseFields,
) -> str:
    if request is not None and fields:
        raise TypeError("give a request or its fields, not both")
    try:
        valid = schema.model_validate(fields if request is None else request)
    except ValidationError as error:
        raise InvalidRequest.from_validation(error) from None
    try:
        # Only what was given: the defaults are the service's, whose version may be another.
        return json.dumps(valid.model_dump(exclude_unset=True), allow_nan=False)
    except (TypeError, ValueError) as error:  # in the method's parameters: all else has a type
        msg = f"a parameter is not a JSON value: {error}"
        raise InvalidRequest.at(("method",), "not_json", msg) from None
