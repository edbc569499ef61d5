"""Log lines are JSON, name their job, and come out of the service as they went in."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service import logs
from service.app import create_app
from service.settings import Settings
from service.store import Store
from taumerge.schemas import MergeRequest, Plan


def test_a_line_names_its_job_and_its_error() -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs.JsonLines("runner"))
    log = logging.Logger("service.test")
    log.addHandler(handler)
    log.info("before\nwith a second line")
    with logs.of_job("merge-1"):
        try:
            raise ValueError("broken")
        except ValueError:
            log.exception("attempt %d", 2)
    first, second = (json.loads(line) for line in written.getvalue().splitlines())
    assert (first["message"], first["process"], first["level"]) == (
        "before\nwith a second line",
        "runner",
        "info",
    )
    assert "job" not in first
    assert (second["message"], second["job"], second["level"]) == ("attempt 2", "merge-1", "error")
    assert second["error"].endswith("ValueError: broken")


@pytest.mark.parametrize(
    ("printed", "kept"),
    [
        ('(Runner pid=12) {"a": 1}\n', '{"a": 1}\n'),
        ('\x1b[36m(JobProcess pid=12, ip=10.0.0.1)\x1b[0m {"a": 1}\n', '{"a": 1}\n'),
        ("(Runner pid=12) not JSON\n", "(Runner pid=12) not JSON\n"),
        ('{"message": "(Runner pid=12) {"}\n', '{"message": "(Runner pid=12) {"}\n'),
    ],
)
def test_what_ray_puts_before_a_line_is_taken_off(printed: str, kept: str) -> None:
    stream = io.StringIO()
    print(printed, end="", file=logs.Unprefixed(stream))
    assert stream.getvalue() == kept


def test_no_token_is_logged_or_answered(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    settings = Settings(
        state_dir=tmp_path / "state",
        token="t0p-s3cret",
        read_roots=str(tmp_path),
        write_roots=str(tmp_path),
    )
    store = Store.open(settings.database_url)
    http = TestClient(
        create_app(settings, store, plan=broken, wake=lambda kind: None), raise_server_exceptions=False
    )
    body = {
        "base": f"{tmp_path}/b",
        "models": [f"{tmp_path}/m"],
        "method": "median",
        "output": f"{tmp_path}/o",
    }
    answers = []
    with caplog.at_level(logging.DEBUG):
        for token in ("t0p-s3cre", "t0p-s3cret"):
            headers = {"Authorization": f"Bearer {token}"}
            changed = body | {"base": "/etc"}
            answers += [http.post("/merge", json=one, headers=headers) for one in (body, changed)]
    store.close()
    assert {answer.status_code for answer in answers} == {403, 422, 500}
    assert "t0p-s3cre" not in caplog.text + "".join(answer.text for answer in answers)


def broken(request: MergeRequest) -> Plan:
    raise RuntimeError("a fault in the preflight")
