"""The command: its exit statuses, its two kinds of output, and its messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from taumerge.cli import app

RECIPE = "base: /b\nmodels: [/m]\nmethod: median\noutput: /o\n"
PLAN = {
    "tensors": 3,
    "parameters": 30,
    "input_bytes": 120,
    "output_bytes": 60,
    "workers": 1,
    "shards": [{"worker": 0, "bytes": 120}],
    "peak_memory_bytes": 1000,
    "warnings": ["model 1 is the base"],
}
METHOD = {
    "name": "cclip",
    "summary": "Clips",
    "description": "d",
    "source": "p",
    "parameters": {"properties": {"rho": {"type": "number"}, "scale": {"type": "string"}}},
    "defaults": {"scale": "sum"},
}


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def run(service):
    def run(*args: str):
        return CliRunner().invoke(app, list(args), env={"TAUMERGE_URL": service.url})

    return run


def test_a_merge_is_queued(run, service, reply, make_job, recipe):
    service.script("POST /merge", reply(202, make_job()))
    done = run("merge", recipe)
    assert done.exit_code == 0
    assert "merge-1" in done.stdout
    assert service.requests[0].body["models"] == [{"uri": "/m"}]


def test_a_merge_is_waited_for(run, service, reply, make_job, recipe):
    service.script("POST /merge", reply(202, make_job()))
    service.script("GET /jobs/merge-1", reply(200, make_job("running")), reply(200, make_job("succeeded")))
    done = run("merge", recipe, "--wait", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["result"]["merged_norm"] == 1.25
    assert "merge-1" in done.stderr


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_job_that_did_not_succeed_exits_1(run, service, reply, make_job, recipe, state):
    error = {"code": "disk_full", "message": "no space left"} if state == "failed" else None
    ended = make_job(state, error=error)
    service.script("POST /merge", reply(202, make_job()))
    service.script("GET /jobs/merge-1", reply(200, ended))
    done = run("merge", recipe, "--wait", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["state"] == state
    assert ("no space left" if error else "was cancelled") in done.stderr


def test_a_dry_run_plans(run, service, reply, recipe):
    service.script("POST /merge", reply(200, PLAN))
    assert json.loads(run("merge", recipe, "--dry-run", "--json").stdout) == PLAN
    assert "model 1 is the base" in run("merge", recipe, "--dry-run").stdout
    assert json.loads(run("merge", recipe, "--wait", "--dry-run", "--json").stdout) == PLAN
    assert [request.query for request in service.requests] == [{"dry_run": "true"}] * 3


def test_a_rejected_request_exits_2_with_a_line_for_each_error(run, service, reply, recipe):
    errors = [
        {"loc": ["base"], "code": "not_found", "msg": "no checkpoint"},
        {"loc": ["models", 0, "uri"], "code": "shape_mismatch", "msg": "another shape"},
    ]
    problem = {"title": "T", "status": 422, "detail": "d", "code": "invalid_request", "errors": errors}
    service.script("POST /merge", reply(422, problem))
    done = run("merge", recipe, "--json")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines() == ["error: base: no checkpoint", "error: models.0.uri: another shape"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: /b\nmodels: [/m\nmethod: x\n", ":3:7: not YAML"),
        ("- base\n", "is a mapping of fields"),
        ("", "is a mapping of fields"),
        ("base: \x07", "not YAML"),
        ("base: /b\n", "models: Field required"),
        (RECIPE + "scaling: -1\n", "scaling: "),
        ("base: /b\nmodels: [/m]\nmethod: {name: cclip, rho: .nan}\noutput: /o\n", "method: "),
        ("base: /b\nmodels: [/m]\nmethod: &m {name: cclip, rho: *m}\noutput: /o\n", "method: "),
        (RECIPE + "1: 2\n", "1: "),
    ],
)
def test_a_bad_recipe_exits_2(run, service, tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    done = run("merge", str(path))
    assert done.exit_code == 2
    assert message in done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())
    assert service.requests == []


@pytest.mark.parametrize(
    "args",
    [
        ["merge"],
        ["merge", "no-such-file.yaml"],
        ["merge", "."],
        ["jobs", "--url", "notaurl"],
        ["jobs", "--state", "lost"],
        ["jobs", "--limit", "0"],
        ["show"],
        ["unknown"],
        ["show", "x", "--token", "é"],
    ],
)
def test_bad_usage_exits_2(run, service, args):
    done = run(*args)
    assert done.exit_code == 2
    assert done.stderr
    assert "Traceback" not in done.output
    assert service.requests == []


@pytest.mark.parametrize(
    ("status", "exit_code"), [(401, 2), (403, 2), (404, 2), (409, 2), (429, 3), (500, 3), (503, 3), (200, 3)]
)
def test_an_error_answer_exits_by_whose_turn_it_is(run, service, reply, status, exit_code):
    problem = {"title": "T", "status": status, "detail": "what to do", "code": "word"}
    service.script("POST /jobs/merge-1/cancel", reply(status, problem))
    done = run("cancel", "merge-1")
    assert (done.exit_code, done.stdout) == (exit_code, "")
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize(
    "args", [["jobs"], ["show", "x"], ["follow", "x"], ["cancel", "x"], ["methods"], ["merge", "RECIPE"]]
)
def test_no_service_exits_3(run, recipe, args):
    args = [recipe if arg == "RECIPE" else arg for arg in args]
    done = run(*args, "--url", "http://127.0.0.1:9")
    assert (done.exit_code, done.stdout) == (3, "")
    assert "make serve" in done.stderr


def test_jobs_are_listed(run, service, reply, make_job):
    running = make_job("running", progress={"phase": "aggregate", "done": 1, "total": 4})
    long = make_job("succeeded", id="merge-2")
    long["request"]["output"] = "/models/" + "a-long-name/" * 20
    service.script("GET /jobs", reply(200, {"jobs": [running, long], "next_cursor": None}))
    listed = run("jobs").stdout
    for part in ("merge-1", "aggregate 25%", "2026-01-01", long["request"]["output"]):
        assert part in listed
    assert [job["id"] for job in json.loads(run("jobs", "--json").stdout)] == ["merge-1", "merge-2"]
    assert service.requests[0].query == {"limit": "20"}


def test_a_job_is_shown(run, service, reply, make_job):
    service.script("GET /jobs/merge-1", reply(200, make_job("succeeded")))
    shown = run("show", "merge-1").stdout
    for part in (
        "merge-1",
        "succeeded",
        "/models/out",
        "/models/[a]",
        "1.25",
        "model.safetensors",
        "ab" * 32,
    ):
        assert part in shown


def test_showing_a_failed_job_succeeds(run, service, reply, make_job):
    failed = make_job("failed", error={"code": "disk_full", "message": "no space left"})
    service.script("GET /jobs/merge-1", reply(200, failed))
    done = run("show", "merge-1")
    assert done.exit_code == 0
    assert "no space left (disk_full)" in done.stdout


@pytest.mark.parametrize(("state", "exit_code"), [("succeeded", 0), ("failed", 1), ("cancelled", 1)])
def test_following_exits_as_the_job_ends(run, service, reply, make_job, state, exit_code):
    events = (
        b'id: 1\nevent: log\ndata: {"message": "hello"}\n\n'
        b'id: 2\nevent: progress\ndata: {"phase": "aggregate", "done": 1, "total": 2}\n\n'
        b'id: 3\nevent: state\ndata: {"state": "%s"}\n\n' % state.encode()
    )
    error = {"code": "disk_full", "message": "no space left"} if state == "failed" else None
    service.script("GET /jobs/merge-1/events", reply(200, events, {"Content-Type": "text/event-stream"}))
    service.script("GET /jobs/merge-1", reply(200, make_job(state, error=error)))
    plain = run("follow", "merge-1")
    assert plain.exit_code == exit_code
    assert "hello" in plain.stderr
    assert state in plain.stdout
    as_json = run("follow", "merge-1", "--json")
    assert as_json.exit_code == exit_code
    lines = [json.loads(line) for line in as_json.stdout.splitlines()]
    assert [line["event"] for line in lines] == ["log", "progress", "state"]
    assert lines[2]["state"] == state


def test_cancel_prints_the_job(run, service, reply, make_job):
    service.script("POST /jobs/merge-1/cancel", reply(202, make_job("running")))
    assert json.loads(run("cancel", "merge-1", "--json").stdout)["state"] == "running"


def test_methods_are_listed(run, service, reply):
    service.script("GET /methods", reply(200, [METHOD]))
    assert "rho, scale=sum" in run("methods").stdout
    assert json.loads(run("methods", "--json").stdout) == [METHOD]


def test_options_may_stand_before_the_command_and_win_over_the_environment(run, service, reply):
    service.script("GET /methods", reply(200, []))
    done = CliRunner().invoke(
        app,
        ["--url", service.url, "--token", "mine", "--json", "methods"],
        env={"TAUMERGE_URL": "http://127.0.0.1:9", "TAUMERGE_TOKEN": "other"},
    )
    assert (done.exit_code, json.loads(done.stdout)) == (0, [])
    assert service.requests[0].headers["authorization"] == "Bearer mine"


def test_ctrl_c_leaves_the_job_and_says_how_to_come_back(service, reply, make_job, recipe):
    service.script("POST /merge", reply(202, make_job()))
    service.script("GET /jobs/merge-1", reply(200, make_job("running")))
    command = [sys.executable, "-m", "taumerge.cli", "merge", recipe, "--wait"]
    process = subprocess.Popen(
        command,
        env=os.environ | {"TAUMERGE_URL": service.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 20
    while len(service.requests) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert out == ""
    assert "taumerge follow merge-1" in err
    assert "Traceback" not in err
    assert not any(request.path.endswith("/cancel") for request in service.requests)
