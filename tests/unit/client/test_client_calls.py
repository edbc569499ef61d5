"""What each method sends and answers, and which error each refusal becomes."""

from __future__ import annotations

import inspect
import math

import pytest

from taumerge import (
    ApiError,
    AsyncClient,
    Client,
    Conflict,
    InvalidRequest,
    MergeRequest,
    MethodSpec,
    ModelRef,
    NotFound,
    Unauthorized,
    Unavailable,
)
from taumerge._calls import MergeFields

FIELDS = {"base": "/b", "models": ["/m"], "method": "median", "output": "/o"}
SENT = {"base": "/b", "models": [{"uri": "/m"}], "method": {"name": "median"}, "output": "/o"}


@pytest.mark.parametrize(
    "fields",
    [
        FIELDS,
        FIELDS | {"models": ({"uri": "/m"},), "method": {"name": "median"}},
        FIELDS | {"models": [ModelRef(uri="/m")], "method": MethodSpec(name="median")},
    ],
)
def test_a_merge_is_sent_as_the_contract_has_it(client, service, reply, make_job, fields):
    service.script("POST /merge", reply(202, make_job()))
    assert client.merge(**fields).state == "queued"
    client.merge(MergeRequest(**fields))
    client.merge(fields)
    assert [request.body for request in service.requests] == [SENT] * 3
    assert service.requests[0].headers["content-type"] == "application/json"
    assert "prefer" not in service.requests[0].headers


def test_rule_parameters_and_other_fields_are_sent(client, service, reply, make_job):
    service.script("POST /merge", reply(202, make_job()))
    client.merge(**FIELDS | {"method": {"name": "cclip", "rho": 0.5}}, scaling=0.3, overwrite=True)
    sent = service.requests[0].body
    assert (sent["method"], sent["scaling"], sent["overwrite"]) == ({"name": "cclip", "rho": 0.5}, 0.3, True)


@pytest.mark.parametrize(("wait", "prefer"), [(0.2, "wait=1"), (20, "wait=20"), (600, "wait=60")])
def test_waiting_in_the_request(client, service, reply, make_job, wait, prefer):
    service.script("POST /merge", reply(200, make_job("succeeded")))
    assert client.merge(**FIELDS, wait=wait).result.merged_norm == 1.25
    assert service.requests[0].headers["prefer"] == prefer


def test_merge_fields_are_those_of_the_schema():
    assert set(MergeFields.__annotations__) == set(MergeRequest.model_fields)


def test_a_request_and_fields_exclude_each_other(client):
    with pytest.raises(TypeError, match="not both"):
        client.merge(MergeRequest(**FIELDS), scaling=2.0)


@pytest.mark.parametrize(
    ("change", "loc"),
    [
        ({"models": []}, ("models",)),
        ({"models": ["/m", {"uri": "/n", "weight": -1}]}, ("models", 1, "weight")),
        ({"scaling": math.nan}, ("scaling",)),
        ({"scale": 1.0}, ("scale",)),
        ({"method": {"name": "cclip", "rho": math.inf}}, ("method",)),
    ],
)
def test_a_local_refusal_is_located_and_never_sent(client, service, change, loc):
    for call in (client.merge, client.plan):
        with pytest.raises(InvalidRequest) as raised:
            call(FIELDS | change)
        assert [item.loc for item in raised.value.errors] == [loc]
    assert service.requests == []


def test_plan_is_a_dry_run(client, service, reply):
    plan = {
        "tensors": 3,
        "parameters": 30,
        "input_bytes": 120,
        "output_bytes": 60,
        "workers": 1,
        "shards": [{"worker": 0, "bytes": 120}],
        "peak_memory_bytes": 1000,
    }
    service.script("POST /merge", reply(200, plan))
    assert client.plan(**FIELDS).shards[0].bytes == 120
    assert service.requests[0].query == {"dry_run": "true"}
    assert service.requests[0].body == SENT


def test_jobs_are_read_page_by_page(client, service, reply, make_job):
    service.script(
        "GET /jobs",
        reply(200, {"jobs": [make_job(id="j3"), make_job(id="j2")], "next_cursor": "c 1"}),
        reply(200, {"jobs": [make_job(id="j1")], "next_cursor": None}),
    )
    assert [job.id for job in client.jobs(state="queued", kind="merge")] == ["j3", "j2", "j1"]
    first, second = (request.query for request in service.requests)
    assert first == {"kind": "merge", "state": "queued", "limit": "100"}
    assert second == {"kind": "merge", "state": "queued", "limit": "100", "cursor": "c 1"}


def test_jobs_stop_at_the_limit(client, service, reply, make_job):
    service.script(
        "GET /jobs", reply(200, {"jobs": [make_job(id="j2"), make_job(id="j1")], "next_cursor": "c"})
    )
    assert [job.id for job in client.jobs(limit=3)] == ["j2", "j1", "j2"]
    assert [request.query["limit"] for request in service.requests] == ["3", "1"]
    assert list(client.jobs(limit=0)) == []


def test_methods_and_health(client, service, reply):
    method = {
        "name": "median",
        "summary": "s",
        "description": "d",
        "source": "p",
        "parameters": {},
        "defaults": {},
    }
    service.script("GET /methods", reply(200, [method]))
    service.script("GET /healthz", reply(200, {"status": "ok"}))
    assert [info.name for info in client.methods()] == ["median"]
    assert client.health() == {"status": "ok"}


def test_an_id_is_one_segment_of_the_path(client, service, reply, make_job):
    service.script("GET /jobs/a%2Fb%3F", reply(200, make_job()))
    client.job("a/b?")
    assert service.requests[0].path == "/jobs/a%2Fb%3F"


def test_the_token_is_sent(connect, service, reply, monkeypatch):
    service.script("GET /healthz", reply(200, {}))
    monkeypatch.setenv("TAUMERGE_TOKEN", "from-env\n")
    monkeypatch.setenv("TAUMERGE_URL", service.url)
    for options in ({}, {"token": "given"}):
        with connect(**options) as client:
            client.health()
    sent = [request.headers["authorization"] for request in service.requests]
    assert sent == ["Bearer from-env", "Bearer given"]


def test_no_token_sends_none(client, service, reply):
    service.script("GET /healthz", reply(200, {}))
    client.health()
    assert "authorization" not in service.requests[0].headers


def test_a_token_that_no_header_can_hold_is_refused_without_showing_it():
    with pytest.raises(InvalidRequest) as raised:
        Client(token="sécret")
    assert "sécret" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host", "http://", "http://[::1", "http://h:x", "nonsense"]
)
def test_an_address_that_is_none(url):
    with pytest.raises(InvalidRequest, match="is not an address"):
        Client(url)


@pytest.mark.parametrize("key", ["clé", "a\nb", "a" * 256])
def test_an_idempotency_key_that_no_header_takes(client, service, key):
    with pytest.raises(InvalidRequest, match="printable ASCII"):
        client.merge(base="/b", models=["/m"], method="median", output="/o", idempotency_key=key)
    assert service.requests == []


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, ApiError),
        (401, Unauthorized),
        (403, Unauthorized),
        (404, NotFound),
        (409, Conflict),
        (429, Unavailable),
        (500, ApiError),
        (503, Unavailable),
    ],
)
def test_a_problem_becomes_a_typed_error(connect, service, reply, status, error):
    problem = {"type": "about:blank", "title": "T", "status": status, "detail": "what to do", "code": "word"}
    service.script("GET /jobs/x", reply(status, problem, {"Content-Type": "application/problem+json"}))
    with connect(service.url, retries=0) as client, pytest.raises(ApiError) as raised:
        client.job("x")
    assert type(raised.value) is error
    assert (raised.value.status, raised.value.code, str(raised.value)) == (status, "word", "what to do")


def test_a_refused_request_keeps_its_located_errors(client, service, reply):
    errors = [
        {"loc": ["models", 1, "uri"], "code": "not_found", "msg": "no checkpoint there"},
        {"loc": ["output"], "code": "exists", "msg": "set overwrite"},
    ]
    problem = {"title": "T", "status": 422, "detail": "d", "code": "invalid_request", "errors": errors}
    service.script("POST /merge", reply(422, problem))
    with pytest.raises(InvalidRequest) as raised:
        client.merge(**FIELDS)
    assert [item.loc for item in raised.value.errors] == [("models", 1, "uri"), ("output",)]
    assert str(raised.value.errors[0]) == "models.1.uri: no checkpoint there"


def test_a_refusal_without_places_keeps_its_detail(client, service, reply):
    service.script("POST /merge", reply(422, {"title": "T", "status": 422, "detail": "why", "code": "odd"}))
    with pytest.raises(InvalidRequest, match="why") as raised:
        client.merge(**FIELDS)
    assert raised.value.errors[0].code == "odd"


@pytest.mark.parametrize(
    ("status", "error"), [(404, NotFound), (307, ApiError), (502, ApiError), (422, InvalidRequest)]
)
def test_an_error_that_is_no_problem_document(client, service, reply, status, error):
    service.script("GET /jobs/x", reply(status, b"<html>", {"Content-Type": "text/html"}))
    with pytest.raises(error, match=rf"answered {status}.*is {service.url} the service's address"):
        client.job("x")


@pytest.mark.parametrize("body", [b"<html>", b"{}", b""])
def test_an_answer_from_something_else(client, service, reply, body):
    service.script("GET /jobs/x", reply(200, body))
    with pytest.raises(ApiError, match="not as this version of taumerge expects") as raised:
        client.job("x")
    assert raised.value.code == "unexpected_answer"


def test_both_clients_have_the_same_methods():
    def signatures(client: type) -> dict[str, list[inspect.Parameter]]:
        return {
            name: list(inspect.signature(method).parameters.values())
            for name, method in inspect.getmembers(client, inspect.isfunction)
            if not name.startswith("_") or name == "__init__"
        }

    assert signatures(Client) == signatures(AsyncClient)
