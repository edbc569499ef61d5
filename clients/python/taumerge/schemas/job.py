"""Jobs, their listing, and the error document."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from taumerge.errors import ErrorItem
from taumerge.schemas._parts import AnswerPart, JobError, Progress
from taumerge.schemas.diagnose import DiagnoseResult
from taumerge.schemas.finetune import FinetuneResult
from taumerge.schemas.merge import MergeResult
from taumerge.schemas.search import SearchResult

JobKind = Literal["merge", "search", "finetune", "diagnose"]
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]

ENDED: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled"})
"""States that a job never leaves."""

JobResult = MergeResult | SearchResult | FinetuneResult | DiagnoseResult
_RESULTS: dict[str, type[JobResult]] = {
    "merge": MergeResult,
    "search": SearchResult,
    "finetune": FinetuneResult,
    "diagnose": DiagnoseResult,
}


class Job(AnswerPart):
    """One accepted request."""

    id: str
    kind: JobKind
    state: JobState
    attempt: int = 0
    """How often the job was started; more than 1 after a crash."""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    progress: Progress | None = None
    request: dict[str, Any]
    result: JobResult | None = None
    error: JobError | None = None

    @field_validator("result", mode="before")
    @classmethod
    def _result_of_kind(cls, value: object, info: ValidationInfo) -> object:
        kind = info.data.get("kind")
        return _RESULTS[kind].model_validate(value) if kind and isinstance(value, dict) else value

    @property
    def ended(self) -> bool:
        """Whether the job has reached a state that it never leaves."""
        return self.state in ENDED


class JobPage(AnswerPart):
    """Jobs, newest first."""

    jobs: list[Job]
    next_cursor: str | None = None
    """Pass as ``cursor`` for the next page; null on the last."""


class Problem(AnswerPart):
    """An error answer (RFC 9457, ``application/problem+json``)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    errors: list[ErrorItem] = Field(default_factory=list)
