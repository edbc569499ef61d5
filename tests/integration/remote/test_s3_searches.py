"""A search from a real S3 server to it: what the local one finds, whole or not at all."""

from __future__ import annotations

from typing import Any

import pytest
from perceptrons import search_body
from s3_server import Fault, S3Server

from taumerge.errors import JobFailed
from taumerge.schemas import Progress, SearchRequest, SearchResult
from workers.search.run import run_search
from workers.settings import WorkerSettings


@pytest.fixture
def body(s3: S3Server, tmp_path: Any) -> dict[str, Any]:
    """A search over models in S3 whose output goes there."""
    body = search_body(tmp_path)
    prefix = f"{tmp_path.name}/in"
    models = [
        {"uri": s3.put(one["uri"], "models", f"{prefix}/{one['task']}"), "task": one["task"]}
        for one in body["models"]
    ]
    base = s3.put(body["base"], "models", f"{prefix}/base")
    return body | {"base": base, "models": models, "output": f"s3://models/{tmp_path.name}/best"}


def search(body: dict[str, Any], settings: WorkerSettings, job_id: str = "") -> SearchResult:
    def ignore(progress: Progress) -> None:
        """A report that nobody listens to."""

    return run_search(SearchRequest.model_validate(body), settings, ignore, job_id=job_id, detached=True)


def out(body: dict[str, Any]) -> str:
    return str(body["output"]).removeprefix("s3://models/")


def test_the_files_are_those_of_a_local_search(
    s3: S3Server, body: dict[str, Any], warm_workers: WorkerSettings, tmp_path: Any
) -> None:
    local = search(search_body(tmp_path / "local"), warm_workers)
    remote = search(body, warm_workers, job_id="search-1")
    assert remote.files == local.files
    assert [one.score for one in remote.evaluations] == [one.score for one in local.evaluations]
    assert set(s3.names("models", out(body))) == {
        path.name for path in (tmp_path / "local" / "best").iterdir()
    }
    assert search(body, warm_workers, job_id="search-1").evaluations == remote.evaluations


def test_what_was_evaluated_outlives_an_output_that_cannot_be_written(
    s3: S3Server, body: dict[str, Any], warm_workers: WorkerSettings
) -> None:
    s3.faults = lambda request: (
        Fault("status", 403) if request.method == "PUT" and request.path.endswith("search.json") else None
    )
    with pytest.raises(JobFailed) as caught:
        search(body, warm_workers)
    assert caught.value.code == "output_unwritable"
    s3.faults = lambda request: None
    assert search(body, warm_workers).complete
    assert "search.json" in s3.names("models", out(body))
