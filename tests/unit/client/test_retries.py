"""What is tried again, how often, and with which pauses."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from taumerge import ApiError, InvalidRequest, ServiceUnreachable, Unavailable, _transport
from taumerge._transport import Retry

MERGE = {"base": "/b", "models": ["/m"], "method": "median", "output": "/o"}


def busy(retry_after: str | None = None) -> httpx.Response:
    return httpx.Response(503, headers={"Retry-After": retry_after} if retry_after else {})


def test_a_merge_is_retried_under_one_idempotency_key(client, service, reply, make_job):
    service.script(
        "POST /merge",
        reply(503, {}, {"Retry-After": "0"}),
        reply(drop=True),
        reply(429, {}),
        reply(202, make_job()),
    )
    assert client.merge(**MERGE).id == "merge-1"
    keys = {request.headers["idempotency-key"] for request in service.requests}
    assert len(service.requests) == 4
    assert len(keys) == 1


def test_every_merge_has_a_key_of_its_own(client, service, reply, make_job):
    service.script("POST /merge", reply(202, make_job()))
    client.merge(**MERGE)
    client.merge(**MERGE)
    assert len({request.headers["idempotency-key"] for request in service.requests}) == 2


def test_the_callers_key_is_sent(client, service, reply, make_job):
    service.script("POST /merge", reply(202, make_job()))
    client.merge(**MERGE, idempotency_key="mine")
    assert service.requests[0].headers["idempotency-key"] == "mine"


def test_retries_stop(connect, service, reply):
    service.script(
        "GET /methods", reply(503, {"title": "x", "status": 503, "detail": "full", "code": "busy"})
    )
    with connect(service.url, retries=2) as client, pytest.raises(Unavailable, match="full") as raised:
        client.methods()
    assert (raised.value.status, raised.value.code) == (503, "busy")
    assert len(service.requests) == 3


@pytest.mark.parametrize("status", [400, 404, 409, 422, 500, 502])
def test_other_errors_are_not_retried(client, service, reply, status):
    service.script("POST /jobs/merge-1/cancel", reply(status, {}))
    with pytest.raises((ApiError, InvalidRequest)):
        client.cancel("merge-1")
    assert len(service.requests) == 1


def test_dropped_connections_end_as_unreachable(connect, service, reply):
    service.script("GET /healthz", reply(drop=True))
    with connect(service.url, retries=1) as client, pytest.raises(ServiceUnreachable, match="make serve"):
        client.health()
    assert len(service.requests) == 2


def test_no_service_names_its_address_and_what_to_do(connect):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with connect(url, retries=1) as client, pytest.raises(ServiceUnreachable) as raised:
            client.job("merge-1")
    for part in (url, "make serve", "TAUMERGE_URL"):
        assert part in str(raised.value)


def test_a_silent_service_times_out(connect):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with (
            connect(url, retries=0, timeout=0.05) as client,
            pytest.raises(ServiceUnreachable, match=r"timed out|ReadTimeout"),
        ):
            client.health()


def test_the_pause_is_jittered_below_a_doubling_ceiling(monkeypatch):
    monkeypatch.setattr(_transport, "BACKOFF_SECONDS", 1.0)
    ceilings = []
    monkeypatch.setattr(_transport.random, "uniform", lambda low, high: ceilings.append((low, high)) or high)
    retry = Retry(6)
    pauses = [retry.pause_seconds(busy()) for _ in range(7)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0, None]
    assert {low for low, _ in ceilings} == {0}


def test_retry_after_in_seconds_is_the_least_pause():
    assert 3.0 <= Retry(1).pause_seconds(busy("3")) <= 3.01


def test_retry_after_as_a_date_is_the_least_pause():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 28.0 < Retry(1).pause_seconds(busy(later)) <= 30.01


@pytest.mark.parametrize(
    "value", ["Thu, 01 Jan 2026 00:00:00 GMT", "Thu, 01 Jan 2026 00:00:00 -0000", "soon", "-5"]
)
def test_a_past_or_unreadable_retry_after_asks_for_nothing(value):
    assert Retry(1).pause_seconds(busy(value)) <= 0.01


def test_a_service_that_asks_for_too_much_patience_is_not_waited_for():
    assert Retry(1).pause_seconds(busy("3600")) is None
