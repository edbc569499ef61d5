"""Every route, status and problem of the HTTP contract, over a real store and a stand-in preflight."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.exc import OperationalError

from service.app import create_app
from service.claims import Claim
from service.gate import MAX_BODY_BYTES
from service.settings import Settings
from service.store import Store
from taumerge.errors import InvalidRequest
from taumerge.schemas import (
    Job,
    JobKind,
    MergeRequest,
    MergeResult,
    Plan,
    Problem,
    Progress,
    Shard,
    TensorCounts,
)

PLAN = Plan(
    tensors=2,
    parameters=10,
    input_bytes=80,
    output_bytes=40,
    workers=1,
    shards=[Shard(worker=0, bytes=80)],
    peak_memory_bytes=1000,
    warnings=["models.0 is equal to the base"],
)
RESULT = MergeResult(
    output="/out",
    files=[],
    tensors=TensorCounts(merged=2, copied=0, dropped=0),
    models=[],
    merged_norm=2.0,
    scaling=1.0,
    seconds={"plan": 0.5},
    bytes_read=100,
    bytes_written=40,
)


class Planned:
    """Stands for ``MergePlan``."""

    @staticmethod
    def describe() -> Plan:
        return PLAN


class Preflight:
    """Stands for ``plan_merge``: says yes, or raises what it is told to."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.calls = 0

    def __call__(self, request: MergeRequest) -> Any:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return Planned


class Service:
    """The application under test and what stands around it."""

    def __init__(self, directory: Path, **changes: Any) -> None:
        fields = {
            "read_roots": str(directory),
            "write_roots": str(directory),
            "state_dir": directory / "state",
        }
        self.settings = Settings(**{**fields, **changes})
        self.store = Store.open(self.settings.database_url)
        self.preflight = Preflight()
        self.woken = 0
        self.app = create_app(self.settings, self.store, plan=self.preflight, wake=self._wake)
        self.http = TestClient(self.app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
        self.body = {
            "base": str(directory / "base"),
            "models": [str(directory / "a"), {"uri": f"file://{directory}/b"}],
            "method": "median",
            "output": str(directory / "out"),
        }

    def _wake(self, kind: JobKind) -> None:
        self.woken += 1

    def claim(self) -> Claim:
        claim = self.store.claim("runner", lease_seconds=60, max_attempts=3)
        assert claim is not None
        return claim


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    services: list[Service] = []

    def start(**changes: Any) -> Service:
        services.append(Service(tmp_path, **changes))
        return services[-1]

    yield start
    for service in services:
        service.store.close()


@pytest.fixture
def service(start: Callable[..., Service]) -> Service:
    return start()


def problem(answer: Any, status: int, code: str) -> Problem:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = Problem.model_validate(answer.json())
    assert (document.status, document.code, document.type) == (status, code, "about:blank")
    assert document.title
    assert document.detail
    assert "Traceback" not in answer.text
    return document


# ----------------------------------------------------------------------------------------- queueing


def test_a_merge_is_queued(service: Service) -> None:
    answer = service.http.post("/merge", json=service.body)
    assert answer.status_code == 202
    job = Job.model_validate(answer.json())
    assert answer.headers["location"] == f"/jobs/{job.id}"
    assert "preference-applied" not in answer.headers
    assert (job.kind, job.state, job.attempt) == ("merge", "queued", 0)
    assert MergeRequest.model_validate(job.request) == MergeRequest.model_validate(service.body)
    assert service.store.get(job.id) == job
    assert service.woken == 1


def test_a_full_queue_refuses_but_knows_its_jobs(start: Callable[..., Service]) -> None:
    service = start(max_queued_jobs=1)
    first = service.http.post("/merge", json=service.body, headers={"Idempotency-Key": "key"})
    refused = service.http.post("/merge", json=service.body)
    problem(refused, 429, "queue_full")
    assert int(refused.headers["retry-after"]) > 0
    again = service.http.post("/merge", json=service.body, headers={"Idempotency-Key": "key"})
    assert again.json() == first.json()
    assert service.http.post("/merge?dry_run=true", json=service.body).status_code == 200
    service.claim()
    assert service.http.post("/merge", json=service.body).status_code == 202


def test_a_full_queue_costs_no_preflight(start: Callable[..., Service]) -> None:
    service = start(max_queued_jobs=1)
    service.http.post("/merge", json=service.body)
    service.preflight.calls = 0
    problem(service.http.post("/merge", json=service.body), 429, "queue_full")
    assert service.preflight.calls == 0


def test_slow_preflights_keep_nobody_else_waiting(service: Service) -> None:
    release = threading.Event()

    def wait(request: MergeRequest) -> Any:
        assert release.wait(30)
        return Planned

    service.app.state.service = replace(service.app.state.service, plan=wait)

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(app=service.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            posts = [
                asyncio.create_task(http.post(f"/merge?dry_run={number % 2}", json=service.body))
                for number in range(60)  # more than the threads that everything shares
            ]
            await asyncio.sleep(0.5)
            jobs = await asyncio.wait_for(http.get("/jobs"), 10)
            assert not any(post.done() for post in posts)
            release.set()
            return [jobs.status_code, *{answer.status_code for answer in await asyncio.gather(*posts)}]

    try:
        assert sorted(asyncio.run(ask())) == [200, 200, 202]
    finally:
        release.set()


def test_a_dry_run_answers_the_plan_and_queues_nothing(service: Service) -> None:
    answer = service.http.post("/merge?dry_run=true", json=service.body)
    assert answer.status_code == 200
    assert Plan.model_validate(answer.json()) == PLAN
    assert service.store.count_jobs() == {}
    assert service.woken == 0


@pytest.mark.parametrize("query", ["", "?dry_run=true"])
def test_what_the_preflight_refuses_is_not_queued(service: Service, query: str) -> None:
    service.preflight.error = InvalidRequest.at(["models", 1, "uri"], "checkpoint_not_found", "nothing there")
    document = problem(service.http.post(f"/merge{query}", json=service.body), 422, "invalid_request")
    assert document.detail == "models.1.uri: nothing there"
    (error,) = document.errors
    assert (error.loc, error.code, error.msg) == (
        ("models", 1, "uri"),
        "checkpoint_not_found",
        "nothing there",
    )
    assert service.store.count_jobs() == {}


@pytest.mark.parametrize(
    ("change", "loc", "code"),
    [
        ({"models": ["/a", {"url": "/b"}]}, ("models", 1, "uri"), "missing"),
        ({"models": []}, ("models",), "too_short"),
        ({"scaling": -1}, ("scaling",), "greater_than_equal"),
        ({"scalling": 1}, ("scalling",), "extra_forbidden"),
        ({"max_shard_size": "5 elephants"}, ("max_shard_size",), "byte_size_unit"),
        ({"base": None}, ("base",), "string_type"),
    ],
)
def test_schema_errors_are_located_in_the_body(
    service: Service, change: dict[str, Any], loc: tuple[Any, ...], code: str
) -> None:
    document = problem(service.http.post("/merge", json={**service.body, **change}), 422, "invalid_request")
    assert (loc, code) in [(error.loc, error.code) for error in document.errors]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_scaling_must_be_finite(service: Service, number: str) -> None:
    body = json.dumps({**service.body, "scaling": 0.25}).replace("0.25", number)
    headers = {"content-type": "application/json"}
    document = problem(service.http.post("/merge", content=body, headers=headers), 422, "invalid_request")
    assert [error.loc for error in document.errors] == [("scaling",)]


@pytest.mark.parametrize("body", ["{", '{"base": }', "", "[1]", '"text"'])
def test_bodies_that_are_no_object_are_refused(service: Service, body: str) -> None:
    answer = service.http.post("/merge", content=body, headers={"content-type": "application/json"})
    assert problem(answer, 422, "invalid_request").errors


def test_bad_json_says_where(service: Service) -> None:
    answer = service.http.post("/merge", content='{"base": }', headers={"content-type": "application/json"})
    (error,) = problem(answer, 422, "invalid_request").errors
    assert (error.loc, error.code) == ((), "json_invalid")
    assert "character 9" in error.msg


def test_text_that_is_no_unicode_is_refused(service: Service) -> None:
    body = json.dumps({**service.body, "method": {"name": "median", "rho": "\ud800"}})
    service.preflight.error = InvalidRequest.at(["method", "rho"], "float_parsing", "not a number")
    answer = service.http.post("/merge", content=body, headers={"content-type": "application/json"})
    problem(answer, 422, "invalid_request")


@pytest.mark.parametrize("body", [b"\xff\xfe{}", b"[" * 500_000, b'{"base": "\xe9"}'])
def test_bodies_that_no_parser_takes_are_refused_as_other_bad_json(service: Service, body: bytes) -> None:
    answer = service.http.post("/merge", content=body, headers={"content-type": "application/json"})
    (error,) = problem(answer, 422, "invalid_request").errors
    assert (error.loc, error.code) == ((), "json_invalid")


@pytest.mark.parametrize("depth", [10, 200, *range(245, 260), 400, 900])
def test_parameters_may_be_nested_as_deep_as_can_be_stored(service: Service, depth: int) -> None:
    rho = f"{'[' * depth}{']' * depth}"
    body = json.dumps({**service.body, "method": {"name": "median", "rho": 0.25}}).replace("0.25", rho)
    answer = service.http.post("/merge", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (202, 422)
    assert (answer.status_code == 202) == (service.http.get("/jobs").json()["jobs"] != [])


def test_places_outside_the_roots_are_refused_before_the_preflight(service: Service) -> None:
    body = {**service.body, "base": "/etc", "output": "s3://bucket/out"}
    for query in ("", "?dry_run=true"):
        document = problem(service.http.post(f"/merge{query}", json=body), 422, "invalid_request")
        assert {error.loc: error.code for error in document.errors} == {
            ("base",): "not_allowed",
            ("output",): "not_allowed",
        }
    assert service.preflight.calls == 0


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_are_refused(service: Service, chunked: bool) -> None:
    body = json.dumps({**service.body, "base": "/" + "x" * MAX_BODY_BYTES}).encode()
    content = (body[start : start + 65536] for start in range(0, len(body), 65536)) if chunked else body
    answer = service.http.post("/merge", content=content, headers={"content-type": "application/json"})
    problem(answer, 413, "request_too_large")


def test_a_body_that_is_declared_too_large_is_not_waited_for(service: Service) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask(headers: list[tuple[bytes, bytes]]) -> None:
        scope = {"type": "http", "method": "POST", "path": "/merge", "headers": headers, "query_string": b""}
        await asyncio.wait_for(service.app(scope, asyncio.Event().wait, send), 10)  # nothing ever comes

    asyncio.run(ask([(b"host", b"localhost"), (b"content-length", b"99999999999")]))
    assert (sent[0]["status"], json.loads(sent[1]["body"])["code"]) == (413, "request_too_large")


# ------------------------------------------------------------------------------ waiting, idempotency


def test_prefer_wait_holds_until_the_job_has_ended(service: Service) -> None:
    def run() -> None:
        while not service.woken:
            time.sleep(0.001)
        service.store.succeed(service.claim(), RESULT)

    runner = threading.Thread(target=run)
    runner.start()
    answer = service.http.post("/merge", json=service.body, headers={"Prefer": "respond-async, wait=30"})
    runner.join()
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=30"
    job = Job.model_validate(answer.json())
    assert answer.headers["location"] == f"/jobs/{job.id}"
    assert job.state == "succeeded"
    assert job.result == RESULT


def test_prefer_wait_ends_when_the_time_is_over(service: Service) -> None:
    began = time.monotonic()
    answer = service.http.post("/merge", json=service.body, headers={"Prefer": "wait=1"})
    assert answer.status_code == 202
    assert answer.json()["state"] == "queued"
    assert 1.0 <= time.monotonic() - began < 5.0


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("wait=0", "wait=0"),
        ("wait=abc", None),
        ("wait=-1", None),
        ("waiting=3", None),
        ("handling=strict", None),
    ],
)
def test_other_preferences_are_ignored(service: Service, prefer: str, applied: str | None) -> None:
    answer = service.http.post("/merge", json=service.body, headers={"Prefer": prefer})
    assert answer.status_code == 202
    assert answer.headers.get("preference-applied") == applied


def test_preferences_may_stand_in_several_lines(service: Service) -> None:
    headers = [("Prefer", "respond-async"), ("Prefer", "wait=0"), ("Prefer", "handling=strict")]
    answer = service.http.post("/merge", json=service.body, headers=headers)
    assert answer.headers["preference-applied"] == "wait=0"


def test_a_wait_is_at_most_a_minute(service: Service) -> None:
    headers = {"Idempotency-Key": "k", "Prefer": "wait=3600"}
    service.http.post("/merge", json=service.body, headers={"Idempotency-Key": "k"})
    service.store.succeed(service.claim(), RESULT)
    answer = service.http.post("/merge", json=service.body, headers=headers)
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=60")


def test_an_idempotency_key_gives_the_same_job(service: Service) -> None:
    headers = {"Idempotency-Key": "key-1"}
    first = service.http.post("/merge", json=service.body, headers=headers)
    spelled_out = {**service.body, "scaling": 1.0, "method": {"name": "median"}}
    again = service.http.post("/merge", json=spelled_out, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]

    other = service.http.post("/merge", json={**service.body, "scaling": 2.0}, headers=headers)
    assert first.json()["id"] in problem(other, 409, "idempotency_conflict").detail


def test_a_repeated_request_finds_its_ended_job_although_the_output_exists_now(service: Service) -> None:
    headers = {"Idempotency-Key": "key-1"}
    first = service.http.post("/merge", json=service.body, headers=headers)
    service.store.succeed(service.claim(), RESULT)
    service.preflight.error = InvalidRequest.at(["output"], "output_exists", "it exists")
    again = service.http.post("/merge", json=service.body, headers=headers)
    assert again.status_code == 200
    assert (again.json()["id"], again.json()["state"]) == (first.json()["id"], "succeeded")


# --------------------------------------------------------------------------------------------- jobs


def test_a_job_is_shown_as_it_runs(service: Service) -> None:
    job_id = service.http.post("/merge", json=service.body).json()["id"]
    progress = Progress(phase="aggregate", done=1, total=4, eta_seconds=3.5)
    service.store.report(service.claim(), progress)
    job = Job.model_validate(service.http.get(f"/jobs/{job_id}").json())
    assert (job.state, job.attempt, job.progress) == ("running", 1, progress)
    assert job.created_at.tzinfo is not None
    assert service.http.get(f"/jobs/{job_id}").json()["created_at"].endswith("Z")


def test_jobs_are_listed_by_page(service: Service) -> None:
    ids = [service.http.post("/merge", json=service.body).json()["id"] for _ in range(3)]
    first = service.http.get("/jobs?limit=2&kind=merge&state=queued").json()
    assert [job["id"] for job in first["jobs"]] == [ids[2], ids[1]]
    last = service.http.get("/jobs", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [job["id"] for job in last["jobs"]] == [ids[0]]
    assert last["next_cursor"] is None
    assert service.http.get("/jobs?state=failed").json() == {"jobs": [], "next_cursor": None}


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("state=lost", "state"),
        ("kind=x", "kind"),
        ("cursor=x", "cursor"),
    ],
)
def test_bad_queries_are_located(service: Service, query: str, name: str) -> None:
    document = problem(service.http.get(f"/jobs?{query}"), 422, "invalid_request")
    assert document.errors[0].loc == ("query", name)


def test_cancel(service: Service) -> None:
    job_id = service.http.post("/merge", json=service.body).json()["id"]
    answer = service.http.post(f"/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    problem(service.http.post(f"/jobs/{job_id}/cancel"), 409, "job_ended")
    problem(service.http.post("/jobs/merge-x/cancel"), 404, "job_not_found")


def test_unknown_jobs_and_paths_and_methods(service: Service) -> None:
    problem(service.http.get("/jobs/merge-x"), 404, "job_not_found")
    problem(service.http.get("/jobs/merge-x/events"), 404, "job_not_found")
    problem(service.http.get("/elsewhere"), 404, "not_found")
    answer = service.http.delete("/jobs")
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET"


# ------------------------------------------------------------------------------------------- events


@pytest.mark.parametrize("path", ["/jobs/%00", "/jobs/x%00/events", "/jobs?cursor=%00", "/jobs/%00/cancel"])
def test_no_text_of_a_request_is_too_much_for_the_database(
    start: Callable[..., Service], database_url: str, path: str
) -> None:
    http = start(database_url=database_url).http
    problem((http.post if path.endswith("cancel") else http.get)(path), 422, "invalid_request")


def stream(text: str) -> list[tuple[int, str, Any]]:
    """The events of a stream: id, event, data."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            events.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return events


def test_events_end_with_the_final_state_and_resume(service: Service) -> None:
    job_id = service.http.post("/merge", json=service.body).json()["id"]
    claim = service.claim()
    progress = Progress(phase="aggregate", done=1, total=4)
    service.store.report(claim, progress)
    service.store.succeed(claim, RESULT)
    answer = service.http.get(f"/jobs/{job_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = stream(answer.text)
    assert [(event, data) for _, event, data in events] == [
        ("state", {"state": "queued"}),
        ("state", {"state": "running"}),
        ("progress", progress.model_dump()),
        ("state", {"state": "succeeded"}),
    ]
    resumed = service.http.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": str(events[1][0])})
    assert stream(resumed.text) == events[2:]
    ended = service.http.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": str(events[-1][0])})
    assert stream(ended.text) == []
    afresh = service.http.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": ""})
    assert stream(afresh.text) == events
    for wrong in ("x", "-1", str(2**63), "9" * 5000):
        bad = service.http.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": wrong})
        assert problem(bad, 422, "invalid_request").errors[0].loc == ("header", "last-event-id")


def test_events_arrive_as_they_happen(service: Service) -> None:
    job_id = service.http.post("/merge", json=service.body).json()["id"]

    def run() -> None:
        time.sleep(0.3)
        service.store.fail(service.claim(), error=job_error())

    runner = threading.Thread(target=run)
    runner.start()
    events = stream(service.http.get(f"/jobs/{job_id}/events").text)
    runner.join()
    assert [data["state"] for _, event, data in events if event == "state"] == ["queued", "running", "failed"]


def test_a_stream_is_bounded(start: Callable[..., Service]) -> None:
    service = start(events_seconds=0.2)
    job_id = service.http.post("/merge", json=service.body).json()["id"]
    began = time.monotonic()
    events = stream(service.http.get(f"/jobs/{job_id}/events").text)
    assert time.monotonic() - began < 5
    assert [data for _, _, data in events] == [{"state": "queued"}]


def job_error() -> Any:
    from taumerge.schemas import JobError

    return JobError(code="nonfinite", message="NaN")


# --------------------------------------------------------------------------------------- operations


def test_methods_are_an_array_of_every_rule(service: Service) -> None:
    methods = service.http.get("/methods").json()
    assert {method["name"] for method in methods} == {
        "task_arithmetic",
        "fednova",
        "fedgma",
        "median",
        "cclip",
    }
    assert all(method["parameters"]["type"] == "object" and method["source"] for method in methods)


def test_health_and_readiness(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert service.http.get("/healthz").json() == {"status": "ok"}
    answer = service.http.get("/readyz")
    problem(answer, 503, "runner_unavailable")
    assert answer.headers["retry-after"] == "1"
    service.store.heartbeat("runner", [], 15)
    assert service.http.get("/readyz").json() == {"status": "ready"}

    late = datetime.now(UTC) - timedelta(seconds=service.settings.lease_seconds + 1)
    monkeypatch.setattr(service.store, "runner_seen_at", lambda: late)
    problem(service.http.get("/readyz"), 503, "runner_unavailable")


def test_a_database_that_is_down_is_503(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: Any, **__: Any) -> Any:
        raise OperationalError("SELECT secret", {}, Exception("host db.internal is down"))

    for name in ("runner_seen_at", "get", "create", "count_jobs"):
        monkeypatch.setattr(service.store, name, down)
    for answer in (
        service.http.get("/readyz"),
        service.http.get("/jobs/merge-x"),
        service.http.post("/merge", json=service.body),
        service.http.get("/metrics"),
    ):
        problem(answer, 503, "database_unavailable")
        assert "secret" not in answer.text
        assert "internal" not in answer.text
    assert service.http.get("/healthz").status_code == 200


def test_an_unexpected_error_shows_no_trace(service: Service) -> None:
    service.preflight.error = RuntimeError("/secret/path")
    answer = service.http.post("/merge", json=service.body)
    problem(answer, 500, "internal_error")
    assert "secret" not in answer.text


def test_metrics_count_jobs_bytes_and_seconds(service: Service) -> None:
    for _ in range(3):
        service.http.post("/merge", json=service.body)
    service.store.succeed(service.claim(), RESULT)
    service.store.lost(service.claim(), "its process died", max_attempts=3)
    service.claim()
    service.store.note_resident(5000)
    answer = service.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    merge = ("kind", "merge")
    assert samples[("taumerge_jobs", merge, ("state", "succeeded"))] == 1
    assert samples[("taumerge_jobs", merge, ("state", "running"))] == 1
    assert samples[("taumerge_jobs", merge, ("state", "failed"))] == 0
    assert samples[("taumerge_queue_depth",)] == 1
    assert samples[("taumerge_retries_total", merge)] == 1
    assert samples[("taumerge_resident_bytes",)] == 5000
    assert samples[("taumerge_merge_bytes_total", ("direction", "read"))] == 100
    assert samples[("taumerge_merge_bytes_total", ("direction", "written"))] == 40
    assert samples[("taumerge_merge_seconds_total", ("phase", "plan"))] == 0.5


def test_openapi_describes_answers_and_problems(service: Service) -> None:
    document = service.http.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/merge",
        "/search",
        "/finetune",
        "/diagnose",
        "/jobs",
        "/jobs/{job_id}",
        "/jobs/{job_id}/events",
        "/jobs/{job_id}/cancel",
        "/methods",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    merge = document["paths"]["/merge"]["post"]["responses"]
    assert merge["202"]["content"]["application/json"]["schema"]["$ref"] == "#/components/schemas/Job"
    for status in ("401", "403", "409", "413", "422", "503"):
        schema = merge[status]["content"]["application/problem+json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/Problem"}
    assert {"Problem", "ErrorItem", "Job", "JobPage", "Plan", "MethodInfo"} <= set(
        document["components"]["schemas"]
    )
    assert "HTTPValidationError" not in json.dumps(document)
    assert service.http.get("/docs").status_code == 200


# --------------------------------------------------------------------------------- token, host names


LOOPBACK = ["127.0.0.1", "127.0.0.1:8000", "localhost", "LocalHost:81", "[::1]", "[::1]:8000", "127.1.2.3:1"]
OTHERS = [
    "evil.example",
    "evil.example:8000",
    "127.0.0.1.evil.example",
    "localhost@evil.example",
    "",
    "[::1",
    "0.0.0.0",
]


@pytest.mark.parametrize("host", LOOPBACK + OTHERS)
def test_without_a_token_only_this_machine_is_answered(start: Callable[..., Service], host: str) -> None:
    service = start()
    answer = service.http.post("/merge", json=service.body, headers={"Host": host})
    if host in LOOPBACK:
        assert answer.status_code == 202
    else:
        problem(answer, 403, "forbidden")
    assert service.http.get("/healthz", headers={"Host": host}).status_code == 200
    secured = start(token="s3cret")
    headers = {"Host": host, "Authorization": "Bearer s3cret"}
    assert secured.http.get("/jobs", headers=headers).status_code == 200


def test_a_token_is_asked_for(start: Callable[..., Service]) -> None:
    service = start(token="s3cret")
    http = service.http
    for path in ("/jobs", "/metrics", "/docs", "/openapi.json", "/elsewhere"):
        answer = http.get(path)
        problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        problem(http.get(path, headers={"Authorization": "Bearer wrong"}), 403, "forbidden")
    problem(http.get("/jobs", headers={"Authorization": "Basic s3cret"}), 401, "unauthorized")
    problem(http.get("/jobs", headers={"Authorization": "Bearer "}), 401, "unauthorized")
    problem(http.get("/jobs", headers={"Authorization": b"Bearer s3cr\xe9t"}), 403, "forbidden")
    problem(http.post("/merge", content="{"), 401, "unauthorized")
    assert http.get("/jobs", headers={"Authorization": "bearer s3cret"}).status_code == 200
    assert http.get("/healthz").status_code == 200
    assert http.get("/readyz").status_code == 503
