"""Server-sent events over as many connections as it takes, and polling until a job has ended."""

from __future__ import annotations

import pytest

from taumerge import (
    ApiError,
    JobCancelled,
    JobFailed,
    LogEvent,
    NotFound,
    ProgressEvent,
    ServiceUnreachable,
    StateEvent,
    WaitTimeout,
)
from taumerge._events import EventStream

ROUTE = "GET /jobs/merge-1/events"
SSE = {"Content-Type": "text/event-stream; charset=utf-8"}
RUNNING = b'id: 1\nevent: state\ndata: {"state": "running"}\n\n'
PROGRESS = b'id: 2\nevent: progress\ndata: {"phase": "aggregate", "done": 1, "total": 2, "unit": "bytes"}\n\n'
LOG = b'id: 3\nevent: log\ndata: {"message": "a worker was replaced"}\n\n'
DONE = b'id: 4\nevent: state\ndata: {"state": "succeeded"}\n\n'
EVENTS = [
    StateEvent(state="running"),
    ProgressEvent(phase="aggregate", done=1, total=2),
    LogEvent(message="a worker was replaced"),
    StateEvent(state="succeeded"),
]


@pytest.fixture(autouse=True)
def reconnect_at_once(monkeypatch):
    monkeypatch.setattr("taumerge.client.RECONNECT_SECONDS", 0.0)


def test_a_stream_that_ends_early_is_resumed(client, service, reply):
    service.script(
        ROUTE,
        reply(200, b": hello\n\n" + RUNNING, SSE),
        reply(200, b"", SSE),
        reply(200, PROGRESS + LOG + DONE[:20], SSE, drop=True),
        reply(503, {}, {"Retry-After": "0"}),
        reply(200, DONE, SSE),
    )
    assert list(client.follow("merge-1")) == EVENTS
    sent = [request.headers.get("last-event-id") for request in service.requests]
    assert sent == [None, "1", "1", "3", "3"]
    assert service.requests[0].headers["accept"] == "text/event-stream"


def test_connections_that_only_break_stop_the_stream(connect, service, reply):
    service.script(ROUTE, reply(200, b"", SSE, drop=True))
    with connect(service.url, retries=2) as client, pytest.raises(ServiceUnreachable):
        list(client.follow("merge-1"))
    assert len(service.requests) == 3


def test_the_final_state_ends_the_stream_whatever_comes_after(connect, service, reply):
    service.script(ROUTE, reply(200, DONE, SSE, drop=True))
    with connect(service.url, retries=0) as client:
        assert list(client.follow("merge-1")) == EVENTS[-1:]


def test_following_no_job(client, service, reply):
    service.script(ROUTE, reply(404, {"title": "T", "status": 404, "detail": "no job", "code": "not_found"}))
    with pytest.raises(NotFound, match="no job"):
        list(client.follow("merge-1"))


def test_an_answer_that_is_no_stream(client, service, reply):
    service.script(ROUTE, reply(200, b"<html>", {"Content-Type": "text/html"}))
    with pytest.raises(ApiError, match="not as this version of taumerge expects"):
        list(client.follow("merge-1"))


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_events_are_decoded_however_they_are_cut(size, newline):
    text = (RUNNING + PROGRESS + LOG + DONE).replace(b"\n", newline)
    stream = EventStream()
    chunks = [text[start : start + size] for start in range(0, len(text), size)]
    assert [event for chunk in chunks for event in stream.decode(chunk)] == EVENTS
    assert stream.ended
    assert stream.last_id == "4"


def test_a_message_may_hold_any_line_separator_of_unicode():
    stream = EventStream()
    text = 'event:log\ndata:{"message":\ndata: "a\u2028b\x85c"}\n\n'
    assert [event.message for event in stream.decode(text.encode())] == ["a\u2028b\x85c"]


def test_unknown_events_are_passed_over_but_counted():
    stream = EventStream()
    assert list(stream.decode(b'id: 9\nevent: metrics\ndata: {"x": 1}\n\n')) == []
    assert stream.last_id == "9"


def test_an_event_that_is_not_what_it_says():
    with pytest.raises(ApiError, match="not a state event"):
        list(EventStream().decode(b'event: state\ndata: {"state": "lost"}\n\n'))


def test_waiting_polls_until_the_end(client, service, reply, make_job):
    running = make_job("running", progress={"phase": "aggregate", "done": 1, "total": 4})
    service.script(
        "GET /jobs/merge-1", reply(200, make_job()), reply(200, running), reply(200, make_job("succeeded"))
    )
    seen = []
    job = client.wait("merge-1", progress=lambda job: seen.append(job.state))
    assert job.result.merged_norm == 1.25
    assert seen == ["queued", "running", "succeeded"]


def test_waiting_with_a_progress_bar_leaves_stdout_alone(client, service, reply, make_job, capsys):
    service.script("GET /jobs/merge-1", reply(200, make_job("running")), reply(200, make_job("succeeded")))
    assert client.wait("merge-1", progress=True).state == "succeeded"
    assert capsys.readouterr().out == ""


def test_a_failed_job_raises_its_error(client, service, reply, make_job):
    error = {"code": "nonfinite", "message": "NaN in model 1", "details": {"model": 1}}
    service.script("GET /jobs/merge-1", reply(200, make_job("failed", error=error)))
    with pytest.raises(JobFailed, match="NaN in model 1") as raised:
        client.wait("merge-1")
    assert (raised.value.code, raised.value.details) == ("nonfinite", {"model": 1})
    assert client.wait("merge-1", check=False).error.code == "nonfinite"


def test_a_cancelled_job_raises(client, service, reply, make_job):
    service.script("GET /jobs/merge-1", reply(200, make_job("cancelled")))
    with pytest.raises(JobCancelled, match="merge-1"):
        client.wait("merge-1")


def test_waiting_ends_in_time(client, service, reply, make_job):
    service.script("GET /jobs/merge-1", reply(200, make_job("running")))
    with pytest.raises(WaitTimeout, match=r"merge-1 has not ended within 0\.1 s"):
        client.wait("merge-1", timeout=0.1)
    assert 3 <= len(service.requests) <= 20
