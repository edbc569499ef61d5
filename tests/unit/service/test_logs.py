"""Log lines are JSON, name their job, and come out of the service as they went in."""

from __future__ import annotations

import io
import json
import logging

import pytest

from service import logs


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
