from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from perceptrons import search_body

from taumerge.schemas import Progress, SearchRequest, SearchResult
from workers.search.run import run_search
from workers.settings import WorkerSettings


@pytest.fixture
def body(tmp_path: Path) -> dict[str, Any]:
    """A search over the paper's rules with the stand-in evaluator."""
    return search_body(tmp_path)


def ignore(progress: Progress) -> None:
    """A report that nobody listens to."""


class Searches:
    """Runs searches on the warm shard workers."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings

    def __call__(
        self, body: dict[str, Any], report: Callable[[Progress], None] = ignore, *, job_id: str = ""
    ) -> SearchResult:
        request = SearchRequest.model_validate(body)
        return run_search(request, self.settings, report, job_id=job_id, detached=True)


@pytest.fixture
def search(warm_workers: WorkerSettings) -> Searches:
    return Searches(warm_workers)
