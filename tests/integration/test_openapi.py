"""What the service answers is what its OpenAPI document says, whatever it is asked: schemathesis makes the requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from service.app import create_app
from service.settings import Settings
from service.store import Store
from taumerge.schemas import MergeRequest
from workers.merging import plan_merge
from workers.merging.plan import MergePlan

HOST = {"Host": "localhost"}
EXAMPLES = 25
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The service in this process, with a queued and a cancelled job, and a runner that takes none."""
    directory: Path = tmp_path_factory.mktemp("api")
    settings = Settings(
        state_dir=directory / "state",
        read_roots=str(directory),
        write_roots=str(directory),
        events_seconds=0.1,
    )
    store = Store.open(settings.database_url)
    store.heartbeat("runner", [], lease_seconds=60)
    store.create("merge", {"base": "/b"})
    store.request_cancel(store.create("merge", {"base": "/b"}).id)

    def plan(request: MergeRequest) -> MergePlan:
        return plan_merge(request, workers=2, worker_memory=0)

    app = create_app(settings, store, plan=plan, wake=lambda kind: None)
    yield schemathesis.openapi.from_asgi("/openapi.json", app, headers=HOST)
    store.close()


def test_answers_are_those_of_the_document(api: Any) -> None:
    asked = set()
    for operation in (found.ok() for found in api.get_all_operations()):
        asked.add(operation.label)

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
        def ask(case: Any) -> None:
            case.call_and_validate(checks=CHECKS, headers=HOST)

        ask()
    assert {"POST /merge", "POST /search", "GET /jobs/{job_id}", "POST /jobs/{job_id}/cancel"} <= asked
