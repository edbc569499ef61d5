"""Structured logs: a line of JSON for each record on stderr, with the job that it is about."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

__all__ = ["JsonLines", "Unprefixed", "configure", "of_job"]

_OURS = ("service", "workers", "taumerge")
_job: ContextVar[str | None] = ContextVar("job", default=None)


def configure(process: str) -> None:
    """Log as JSON lines from now on: what is ours from INFO, all else from WARNING.

    Args:
        process: what this process is, for example ``runner``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(process))
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)


@contextmanager
def of_job(job_id: str) -> Iterator[None]:
    """What is logged inside is about this job."""
    token = _job.set(job_id)
    try:
        yield
    finally:
        _job.reset(token)


class JsonLines(logging.Formatter):
    """``time``, ``level``, ``process``, ``logger``, ``message``; ``job`` and ``error`` where there is one."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if job := _job.get():
            line["job"] = job
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class Unprefixed:
    """A stream that takes off what Ray puts before the JSON lines of its processes: ``(Runner pid=1234)``."""

    _PREFIX = re.compile(r"^(?:\x1b\[\d+m)?\([^()]*pid=[^()]*\)(?:\x1b\[0m)? (?=\{)", re.MULTILINE)

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(self._PREFIX.sub("", text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
