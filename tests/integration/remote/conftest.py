"""The S3 server, and retries that do not wait long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from s3_server import S3Server, s3_server

from workers.checkpoints.remote import fetching
from workers.checkpoints.remote.store import store_of


@pytest.fixture(scope="session")
def running_s3(s3_port: int) -> Iterator[S3Server]:
    store_of.cache_clear()
    with s3_server(s3_port) as server:
        yield server


@pytest.fixture
def s3(running_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server without faults."""
    monkeypatch.setattr(fetching, "FIRST_PAUSE_SECONDS", 0.001)
    running_s3.requests.clear()
    yield running_s3
    running_s3.faults = lambda request: None
